"""How figures look: sizes, type, colours, axes without clutter, names written beside their lines.

Figures are made with matplotlib's objects and drawn by Agg: no pyplot, no global state. Text of a model or
a configuration goes through `plain`, so that no `$` is read as mathematics. Colours are of Okabe and Ito's
palette, which stays apart for colour-blind readers; beyond six, the dash of a line tells more.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from scipy.optimize import isotonic_regression

INK, SOFT, GRID = "#1b1f24", "#626b75", "#e3e6ea"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b0558f", "#e09900", "#4faee5")
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = COLORS
GREY = "#b9bfc6"
DASHES = ("-", "--", ":", "-.")

# The usual rivals keep their colour from page to page.
_PREFERRED = {"hpt": BLUE, "grpo": VERMILLION, "sft": GREEN, "luffy": PURPLE, "srft": ORANGE, "ppo": SKY}

WIDTH, HEIGHT = 4.8, 2.9  # inches of one panel; 96 pixels of the page each
TITLE_PT, TEXT_PT = 10.5, 8.5
NICE = [1, 2, 2.5, 5, 10]  # distances of ticks


def method_styles(algorithms: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, dash) of each method, all different up to 24; the first of an algorithm has its own colour."""
    styles: list[tuple[str, str] | None] = [None] * len(algorithms)
    for i, name in enumerate(algorithms):
        wanted = (_PREFERRED.get(name, ""), DASHES[0])
        if wanted[0] and wanted not in styles:
            styles[i] = wanted
    free = itertools.cycle(s for dash in DASHES for c in COLORS if (s := (c, dash)) not in styles)
    return [style or next(free) for style in styles]


@functools.cache
def font() -> str:
    """A sans serif that is there; DejaVu comes with matplotlib."""
    present = set(font_manager.get_font_names())
    wanted = ("Inter", "Helvetica Neue", "Liberation Sans", "Arial", "DejaVu Sans")
    return next(name for name in wanted if name in present)


def plain(**changes: Any) -> dict[str, Any]:
    """Keywords of a text as this page has it. Example: `ax.text(0, 0, "cost: $5", **plain(color=SOFT))`."""
    return {"family": font(), "fontsize": TEXT_PT, "color": INK, "parse_math": False, **changes}


def panel(title: str, subtitle: str, *, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes. The title says what; the subtitle gives the unit and what it means."""
    figure = canvas(title, subtitle, height=height)
    axes = figure.add_axes((0.62 / WIDTH, 0.46 / height, 1 - 0.8 / WIDTH, 1 - 1.06 / height))
    clean(axes)
    return figure, axes


def canvas(title: str, subtitle: str, *, height: float = HEIGHT) -> Figure:
    """An empty figure with title and subtitle at its upper left."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.1 / WIDTH, 1 - 0.12 / height, title, va="top", **plain(fontsize=TITLE_PT, weight="bold"))
    figure.text(0.1 / WIDTH, 1 - 0.33 / height, subtitle, va="top", **plain(color=SOFT))
    return figure


def clean(axes: Axes) -> None:
    """Light horizontal lines, no box, small grey ticks."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=TEXT_PT, labelcolor=SOFT, labelfontfamily=font())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3, steps=NICE))
    axes.yaxis.set_major_formatter(short)


def count_axis(axes: Axes, label: str) -> None:
    """The horizontal axis counts something: steps, attempts."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=NICE))
    axes.xaxis.set_major_formatter(short)
    axes.set_xlabel(label, **plain(color=SOFT))


def short(value: float, _tick: float = 0) -> str:
    """A number for an axis, as matplotlib asks for it. Example: `short(15700) == "15.7k"`, `short(5e-7) == "5e−07"`."""
    if value and abs(value) < 1e-3:
        return f"{value:.2g}".replace("-", "−")
    text = EngFormatter(sep="", usetex=False)(value) if abs(value) >= 1e4 else f"{value:,.6g}"
    return text.replace("-", "−")


def rounded(value: float) -> str:
    """Three digits of a number. Example: `rounded(218686) == "219k"`."""
    return short(float(f"{value:.3g}"))


def share_axis(axes: Axes) -> None:
    """The vertical axis is a share: 0 to 100 %."""
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


@dataclass(frozen=True, slots=True)
class End:
    """A name to be written at the right of the axes, at the height `y` of the data."""

    y: float
    text: str
    color: str
    dash: str = "-"


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write each name where its line ends. Names that would overlap are moved apart; the axes become
    narrower by what the longest takes. Where dashes tell lines apart, a piece of the line stands before each.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    if not ends:
        return
    width, height = figure.get_size_inches()
    box = axes.get_position()
    axes.get_ylim()  # settles the limits, which the next line needs
    ordered = sorted(ends, key=lambda end: end.y)
    ys = axes.transAxes.inverted().transform(axes.transData.transform([(0, end.y) for end in ordered]))[:, 1]
    line = 1.25 * TEXT_PT / 72 / (height * box.height)  # of one line of text, in heights of the axes
    with_dashes = any(end.dash != "-" for end in ends)
    left = 1.1 if with_dashes else 1.02
    texts = []
    for y, end in zip(move_apart(ys, line, 1.0 + line), ordered, strict=True):
        dark = [0.68 * part for part in to_rgb(end.color)]  # so that letters in it can be read
        style = plain(color=dark, va="center", transform=axes.transAxes)
        texts.append(axes.text(left, y, abbreviated(end.text, 26), **style))
        if with_dashes:
            piece = Line2D([1.02, 1.085], [y, y], color=end.color, clip_on=False)
            piece.set_linestyle(end.dash)  # type: ignore[arg-type]  # one of DASHES
            axes.add_line(piece).set_transform(axes.transAxes)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    room = max(text.get_window_extent(renderer).width for text in texts) / figure.dpi / width
    right = (1 - room - 0.15 / width - box.x0) / left  # the names begin `left` widths of the axes from x0
    axes.set_position((box.x0, box.y0, right, box.height))


def move_apart(ys: np.ndarray, gap: float, top: float) -> np.ndarray:
    """Ascending positions as near as they may be to `ys`, at least `gap` apart and below `top`. [N] → [N].

    Example: `move_apart([0.5, 0.5], 0.1, 1)` is `[0.45, 0.55]`.
    """
    # Shifted by their rank, positions that are `gap` apart only have to ascend.
    offsets = gap * np.arange(len(ys))
    return np.minimum(isotonic_regression(ys - offsets).x, top - offsets[-1]) + offsets


def abbreviated(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
