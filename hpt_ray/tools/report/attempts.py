"""Where each prompt went: solve rate and branch per prompt and attempt, and the figure of it.

In: the attempts of a run (prompt_history.jsonl). A prompt's k-th attempt is in column k, which is an epoch as long as
the sampler draws without replacement. Rows are sorted by the attempt at which a prompt was first solved, so
that what was learned early is on top and what was never solved is at the bottom.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpt_ray.tools.report.load import Attempt
from hpt_ray.tools.report.style import (
    BRANCH_COLORS,
    GREY,
    SOFT,
    TEXT_PT,
    WIDTH,
    canvas,
    clean,
    count_axis,
    cut,
    font,
    plain,
)

BRANCHES = tuple(BRANCH_COLORS)
MAP_HEIGHT = 5.0  # inches
MOST_ROWS = 660  # of the picture: one pixel each; more prompts are averaged with their neighbours
SOLVE_RATE = colors.LinearSegmentedColormap.from_list(
    "solve_rate", ["#f3ead6", "#bfdbc8", "#5fb3bf", "#2b74a6", "#123a6d"]
)


@dataclass(frozen=True, slots=True)
class AttemptMap:
    """[Q, V] arrays, prompts sorted. `solve_rate` is NaN where nothing was graded or there was no attempt;
    `branch` holds indices into `BRANCHES`, −1 without an attempt."""

    prompt_ids: Sequence[str]
    solve_rate: np.ndarray
    branch: np.ndarray

    @property
    def has_solve_rates(self) -> bool:
        return bool(np.isfinite(self.solve_rate).any())


def attempt_map(attempts: Iterable[Attempt]) -> AttemptMap:
    """Attempts in the order of steps → the map."""
    of_prompt: defaultdict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        of_prompt[attempt.prompt_id].append(attempt)
    shape = len(of_prompt), max((len(v) for v in of_prompt.values()), default=0)
    rates, branches = np.full(shape, np.nan), np.full(shape, -1)
    for i, prompt_attempts in enumerate(of_prompt.values()):
        for j, attempt in enumerate(prompt_attempts):
            rates[i, j], branches[i, j] = attempt.solve_rate, BRANCHES.index(attempt.branch)
    order = _order(rates)
    ids = list(of_prompt)
    return AttemptMap([ids[i] for i in order], rates[order], branches[order])


def _order(rates: np.ndarray) -> np.ndarray:
    """First by the attempt of the first right answer, then from often right to seldom."""
    if not rates.size:
        return np.arange(len(rates))
    solved = rates > 0
    first = np.where(solved.any(axis=1), solved.argmax(axis=1), rates.shape[1])
    return np.lexsort((-_mean(rates, axis=1), first))


def moves(attempts: Sequence[Attempt]) -> np.ndarray:
    """Prompts by their first and their last attempt: [3, 3] counts, none / some / all of the rollouts right.

    Only prompts that were graded at two attempts or more.
    """
    ends: dict[str, tuple[int, int]] = {}
    for attempt in attempts:
        if np.isfinite(rate := attempt.solve_rate):
            state = 0 if rate == 0 else 2 if rate == 1 else 1
            first = ends[attempt.prompt_id][0] if attempt.prompt_id in ends else -1
            ends[attempt.prompt_id] = (state, -1) if first < 0 else (first, state)
    counts = np.zeros((3, 3), int)
    for first, last in ends.values():
        if last >= 0:
            counts[first, last] += 1
    return counts


def solve_rate_figure(map_: AttemptMap, title: str = "Solve rate per prompt") -> Figure:
    """Two maps side by side: share of rollouts solved, and what the prompt trained on."""
    num = len(map_.prompt_ids)
    per_row = -(-num // MOST_ROWS)
    rows = f"{num:,} prompts" + (f", {per_row} a row" if per_row > 1 else "")
    figure = canvas(title, f"{rows}, sorted by when first solved", height=MAP_HEIGHT)
    rates, branches = SOLVE_RATE(blocks(map_.solve_rate, per_row)), _branch_image(map_.branch, per_row)
    _map_axes(figure, 0.115, 0.41, "share solved", rates, num).set_ylabel("prompts", **plain(color=SOFT))
    _map_axes(figure, 0.57, 0.41, "trained on", branches, num).set_yticklabels([])
    _color_scale(figure)
    _branch_key(figure, map_.branch)
    return figure


def solve_rate_maps(maps: Sequence[tuple[str, AttemptMap]], title: str) -> Figure:
    """The solve rates of several runs beside each other, all rows in the order of the first map."""
    order = {q: i for i, q in enumerate(dict.fromkeys(q for _, map_ in maps for q in map_.prompt_ids))}
    per_row = -(-len(order) // MOST_ROWS)
    rows = f"{len(order):,} prompts, each at the same height in every map"
    figure = canvas(title, rows, height=MAP_HEIGHT)
    width = 0.885 / len(maps)
    for number, (name, map_) in enumerate(maps):
        rates = np.full((len(order), map_.solve_rate.shape[1]), np.nan)
        rates[[order[prompt] for prompt in map_.prompt_ids]] = map_.solve_rate
        image = SOLVE_RATE(blocks(rates, per_row))
        axes = _map_axes(figure, 0.115 + number * width, 0.9 * width, name, image, len(order))
        if number:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("prompts", **plain(color=SOFT))
    _color_scale(figure)
    return figure


def _map_axes(figure: Figure, left: float, width: float, name: str, image: np.ndarray, num: int) -> Axes:
    """A picture [rows, V, RGBA] with one column an attempt."""
    axes = figure.add_axes((left, 0.96 / MAP_HEIGHT, width, 1 - 1.7 / MAP_HEIGHT))
    clean(axes)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0.5, image.shape[1] + 0.5, num, 0))
    axes.set_title(cut(name, 22), loc="left", pad=5, **plain())
    count_axis(axes, "attempt")
    return axes


def blocks(values: np.ndarray, per_row: int) -> np.ndarray:
    """Means of `per_row` rows each, NaN left out: [Q, V] → [⌈Q / per_row⌉, V]."""
    filled = np.full((-(-len(values) // per_row) * per_row, values.shape[1]), np.nan)
    filled[: len(values)] = values
    return _mean(filled.reshape(-1, per_row, values.shape[1]), axis=1)


def _branch_image(branch: np.ndarray, per_row: int) -> np.ndarray:
    """[rows, V, 4]: the colours of the branches mixed in the shares of a row's prompts; white for none."""
    image = np.ones((-(-len(branch) // per_row), branch.shape[1], 4))
    tints = np.array([colors.to_rgb(BRANCH_COLORS[name]) for name in BRANCHES])
    for channel in range(3):
        of_each = np.where(branch >= 0, tints[branch, channel], np.nan)
        image[..., channel] = blocks(of_each, per_row)
    return image


def _color_scale(figure: Figure) -> None:
    axes = figure.add_axes((0.115, 0.36 / MAP_HEIGHT, 0.3, 0.1 / MAP_HEIGHT))
    axes.imshow(SOLVE_RATE(np.linspace(0, 1, 100))[None], aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", "half", "all"])
    axes.tick_params(length=0, labelsize=TEXT_PT, labelcolor=SOFT, labelfontfamily=font())
    axes.spines[:].set_color(GREY)


def _branch_key(figure: Figure, branch: np.ndarray) -> None:
    present = [name for i, name in enumerate(BRANCHES) if (branch == i).any()]
    for number, name in enumerate(present):
        x, y = 0.57 + 0.2 * (number % 2), (0.36 - 0.2 * (number // 2)) / MAP_HEIGHT
        patch = figure.add_axes((x, y, 0.12 / WIDTH, 0.12 / MAP_HEIGHT))
        patch.set(facecolor=BRANCH_COLORS[name], xticks=[], yticks=[])
        patch.spines[:].set_visible(False)
        figure.text(x + 0.18 / WIDTH, y + 0.05 / MAP_HEIGHT, name, va="center", **plain())


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows without an attempt
        return np.nanmean(values, axis=axis)
