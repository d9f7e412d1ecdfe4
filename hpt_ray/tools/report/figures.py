"""Figures over steps (or over k): lines with their names at the right, and parts of a whole as bars.

In: `Curve`s and `Series` of plain arrays. Out: figures. Nothing here knows where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hpt_ray.tools.report import style
from hpt_ray.tools.report.load import Series

MOST_BARS = 60


@dataclass(frozen=True, slots=True)
class Curve:
    """One line with its name. `x`, `mean` [N]; `low`, `high` [N] are the edges of a band, `raw` [N] what was
    smoothed."""

    label: str
    color: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    raw: np.ndarray | None = None
    dash: str = "-"
    width: float = 1.8  # points
    tails: Sequence[tuple[np.ndarray, np.ndarray]] = ()  # single seeds past the end of the mean: x, y


@dataclass(frozen=True, slots=True)
class Marks:
    """What is marked on the axis of steps: those with a fault, and the first ones of later phases."""

    faults: Sequence[int] = ()
    phases: Sequence[int] = ()

    def draw(self, axes: Axes) -> None:
        """Small triangles at the foot of the axes for faults; dotted lines where a phase begins."""
        for step in self.phases:
            axes.axvline(step - 0.5, color=style.SOFT, linestyle=":", linewidth=1.0)
        if self.faults:
            foot: dict[str, Any] = {
                "transform": axes.get_xaxis_transform(),
                "scaley": False,
                "clip_on": False,
            }
            feet = [0.0] * len(self.faults)
            axes.plot(self.faults, feet, "^", color=style.VERMILLION, markersize=6, zorder=5, **foot)


NO_MARKS = Marks()


def curves_figure(
    curves: Sequence[Curve],
    title: str,
    unit: str,
    *,
    x_label: str = "step",
    share: bool | None = False,
    log: bool = False,
    marks: Marks = NO_MARKS,
    height: float = style.HEIGHT,
) -> Figure:
    """Lines with their names at the right.

    `share`: the axis is 0 to 100 %; None: where all values are within.
    """
    if share is None:
        values = _finite([curve.mean for curve in curves])
        share = bool(values.min() >= 0 and values.max() <= 1)
    figure, axes = style.panel(title, unit, height=height)
    for curve in curves:
        _draw(axes, curve)
    style.count_axis(axes, x_label)
    if share:
        style.share_axis(axes)
    elif log:
        axes.set_yscale("log")
    else:
        _leave_room(axes, curves)
    marks.draw(axes)
    style.label_ends(axes, [style.End(c.mean[-1], c.label, c.color, c.dash) for c in curves if c.label])
    return figure


def pass_at_k_figure(curves: Sequence[Curve], title: str) -> Figure:
    """Curves over k, which grows by doubling."""
    unit = "share of prompts solved by one of k samples"
    figure = curves_figure(curves, title, unit, x_label="k", share=True)
    axes = figure.axes[0]
    axes.set_xscale("log", base=2)
    ks = sorted({int(k) for curve in curves for k in curve.x})
    axes.set_xticks(ks[:: -(-len(ks) // 8)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(style.short)
    return figure


def stack_figure(
    parts: Mapping[str, Series],
    colors: Sequence[str],
    title: str,
    unit: str,
    *,
    share: bool = False,
    marks: Marks = NO_MARKS,
) -> Figure:
    """Bars on top of each other, the first part at the bottom; many steps share one bar, which is their mean.

    A part without a value at a step counts as zero there. `share`: each bar is made to add up to 1.
    """
    steps = np.unique(np.concatenate([series.steps for series in parts.values()]))
    values = np.stack([series.at(steps) for series in parts.values()])
    if share:
        values = values / np.maximum(values.sum(axis=0), 1e-12)
    per_bar = -(-len(steps) // MOST_BARS)
    starts = np.arange(0, len(steps), per_bar)
    counts = np.diff(np.append(starts, len(steps)))
    heights = np.add.reduceat(values, starts, axis=1) / counts
    middles = np.add.reduceat(steps, starts) / counts
    figure, axes = style.panel(title, unit + (f"; bars: means of {per_bar} steps" if per_bar > 1 else ""))
    tops, means = np.cumsum(heights, axis=0), values.mean(axis=1)
    for row, top, color in zip(heights, tops, colors, strict=False):
        axes.bar(middles, row, width=0.86 * per_bar, bottom=top - row, color=color, linewidth=0)
    style.count_axis(axes, "step")
    if share:
        style.share_axis(axes)
    marks.draw(axes)
    ends = zip(np.cumsum(means) - means / 2, parts, colors, strict=False)
    style.label_ends(axes, [style.End(y, n, style.SOFT if c == style.GREY else c) for y, n, c in ends])
    return figure


def _draw(axes: Axes, curve: Curve) -> None:
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=curve.color, alpha=0.16, linewidth=0)
    if curve.raw is not None:
        axes.plot(curve.x, curve.raw, color=curve.color, alpha=0.28, linewidth=0.8)
    for x, y in curve.tails:
        axes.plot(x, y, color=curve.color, alpha=0.5, linewidth=0.8)
    (line,) = axes.plot(curve.x, curve.mean, color=curve.color, linewidth=curve.width, markersize=4)
    line.set(linestyle=curve.dash, solid_capstyle="round", marker="o" if len(curve.x) <= 12 else "None")


def _leave_room(axes: Axes, curves: Sequence[Curve]) -> None:
    """Begin at zero where no value is negative; a constant lies in the middle, not at the edge."""
    inner = _finite([a for c in curves for a in (c.mean, c.raw, *(y for _, y in c.tails))])
    everything = _finite([inner, *(a for c in curves for a in (c.low, c.high))])
    low, high = float(everything.min()), float(everything.max())
    if inner.min() >= 0:  # the edge of a band may be below what can be
        axes.set_ylim(0, 1.08 * high or 1.0)
    else:
        room = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)


def _finite(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    """All finite values; a zero where there is none."""
    values = np.concatenate([np.zeros(0), *(array for array in arrays if array is not None)])
    values = values[np.isfinite(values)]
    return values if len(values) else np.zeros(1)
