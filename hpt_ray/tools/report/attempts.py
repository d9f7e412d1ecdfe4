"""Where each prompt went: solve rate and branch per prompt and attempt, and the figure of it.

In: the attempts of a run (prompt_history.jsonl). A prompt's k-th attempt is in column k, which is an epoch as long as
the sampler draws without replacement. Rows are sorted by the attempt at which a prompt was first solved, so
that what was learned early is on top and what was never solved is at the bottom.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure

from hpt_ray.tools.report import style
from hpt_ray.tools.report.load import Attempt
from hpt_ray.tools.report.style import plain

MAP_HEIGHT = 5.0  # inches
MOST_ROWS = 660  # of the picture: one pixel each; more prompts are averaged with their neighbours


@dataclass(frozen=True, slots=True)
class Scale:
    """Colours of values from `least` to 1, and what is written below its ends and its middle."""

    colors: Sequence[str]
    least: float
    words: tuple[str, str, str]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """RGBA of each value; NaN is transparent."""
        of = colors.LinearSegmentedColormap.from_list("scale", list(self.colors))
        return of((values - self.least) / (1 - self.least))


SOLVE_RATE = Scale(("#f3ead6", "#bfdbc8", "#5fb3bf", "#2b74a6", "#123a6d"), 0, ("0", "half", "all"))
GAIN = Scale(("#8c3b12", "#d98b5f", "#f4f1ea", "#5fa3c7", "#123a6d"), -1, ("−all", "equal", "+all"))


@dataclass(frozen=True, slots=True)
class AttemptMap:
    """Prompts sorted, and their `solve_rate` [Q, V]: NaN where nothing was graded or there was no attempt."""

    prompt_ids: Sequence[str]
    solve_rate: np.ndarray

    @property
    def has_solve_rates(self) -> bool:
        return bool(np.isfinite(self.solve_rate).any())


def by_prompt(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    """The attempts of each prompt, in the order given."""
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault(attempt.prompt_id, []).append(attempt)
    return found


def attempt_map(attempts: Iterable[Attempt]) -> AttemptMap:
    """Attempts in the order of steps → the map."""
    of_prompt = by_prompt(attempts)
    shape = len(of_prompt), max(map(len, of_prompt.values()), default=0)
    rates = np.full(shape, np.nan)
    for i, of_one in enumerate(of_prompt.values()):
        rates[i, : len(of_one)] = [attempt.solve_rate for attempt in of_one]
    # First by the attempt of the first correct response, then from often correct to seldom.
    solved = np.pad(rates > 0, [(0, 0), (0, 1)], constant_values=True)
    order = np.lexsort((-_mean(rates, axis=1), solved.argmax(axis=1)))
    ids = list(of_prompt)
    return AttemptMap([ids[i] for i in order], rates[order])


def gain_map(ours: Iterable[Attempt], theirs: Iterable[Attempt]) -> AttemptMap:
    """The solve rate of one run minus that of another at the k-th graded attempt of each prompt that both have, as rows
    in the order of what was gained over all attempts (paper, Figure 4). Attempts without rollouts have no column."""
    a, b = (by_prompt(x for x in side if np.isfinite(x.solve_rate)) for side in (ours, theirs))
    ids = [prompt for prompt in a if prompt in b]
    gains = np.full((len(ids), max((min(len(a[i]), len(b[i])) for i in ids), default=0)), np.nan)
    for row, prompt in zip(gains, ids, strict=True):
        pairs = zip(a[prompt], b[prompt], strict=False)
        found = [x.solve_rate - y.solve_rate for x, y in pairs]
        row[: len(found)] = found
    order = np.argsort(-_mean(gains, axis=1), kind="stable")
    return AttemptMap([ids[i] for i in order], gains[order])


def moves(attempts: Sequence[Attempt]) -> np.ndarray:
    """Prompts by their first and their last attempt: [3, 3] counts, none / some / all of the rollouts correct.

    Only prompts that were graded at two attempts or more.
    """
    counts = np.zeros((3, 3), int)
    for of_prompt in by_prompt(a for a in attempts if np.isfinite(a.solve_rate)).values():
        if len(of_prompt) > 1:
            first, last = (
                int(a.solve_rate > 0) + int(a.solve_rate == 1) for a in (of_prompt[0], of_prompt[-1])
            )
            counts[first, last] += 1
    return counts


def solve_rate_maps(maps: Sequence[tuple[str, AttemptMap]], title: str, scale: Scale = SOLVE_RATE) -> Figure:
    """The solve rates of several runs beside each other, all rows in the order of the first map."""
    order = {q: i for i, q in enumerate(dict.fromkeys(q for _, map_ in maps for q in map_.prompt_ids))}
    per_row = -(-len(order) // MOST_ROWS)
    rows = f"{len(order):,} prompts" + ", each at the same height in every map" * (len(maps) > 1)
    figure = style.canvas(title, rows, height=MAP_HEIGHT)
    width = 0.885 / len(maps)
    for number, (name, map_) in enumerate(maps):
        rates = np.full((len(order), map_.solve_rate.shape[1]), np.nan)
        rates[[order[prompt] for prompt in map_.prompt_ids]] = map_.solve_rate
        image = scale(blocks(rates, per_row))
        _map_axes(figure, 0.115 + number * width, 0.9 * width, name, image, len(order))
    _color_scale(figure, scale)
    return figure


def _map_axes(figure: Figure, left: float, width: float, name: str, image: np.ndarray, num: int) -> None:
    """A picture [rows, V, RGBA] with one column an attempt; only the first one says how many prompts."""
    is_first = len(figure.axes) == 0
    axes = figure.add_axes((left, 0.96 / MAP_HEIGHT, width, 1 - 1.7 / MAP_HEIGHT))
    style.clean(axes)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0.5, image.shape[1] + 0.5, num, 0))
    axes.set_title(style.abbreviated(name, 22), loc="left", pad=5, **plain())
    style.count_axis(axes, "attempt")
    if is_first:
        axes.set_ylabel("prompts", **plain(color=style.SOFT))
    else:
        axes.set_yticklabels([])


def blocks(values: np.ndarray, per_row: int) -> np.ndarray:
    """Means of `per_row` rows each, NaN left out: [Q, V] → [⌈Q / per_row⌉, V]."""
    filled = np.full((-(-len(values) // per_row) * per_row, values.shape[1]), np.nan)
    filled[: len(values)] = values
    return _mean(filled.reshape(-1, per_row, values.shape[1]), axis=1)


def _color_scale(figure: Figure, scale: Scale) -> None:
    axes = figure.add_axes((0.115, 0.36 / MAP_HEIGHT, 0.3, 0.1 / MAP_HEIGHT))
    axes.imshow(scale(np.linspace(scale.least, 1, 100))[None], aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], scale.words)
    axes.tick_params(length=0, labelsize=style.TEXT_PT, labelcolor=style.SOFT, labelfontfamily=style.font())
    axes.spines[:].set_color(style.GREY)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows without an attempt
        return np.nanmean(values, axis=axis)
