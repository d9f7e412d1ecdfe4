"""Figures over steps (or over k): lines with their names at the right.

In: `Curve`s of plain arrays. Out: figures. Nothing here knows where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hpt_ray.tools.report import style


@dataclass(frozen=True, slots=True)
class Curve:
    """One line with its name. `x`, `mean` [N]; `low`, `high` [N] are the edges of a band."""

    label: str
    color: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dash: str = "-"
    width: float = 1.8  # points
    tails: Sequence[tuple[np.ndarray, np.ndarray]] = ()  # single seeds past the end of the mean: x, y


def curves_figure(
    curves: Sequence[Curve],
    title: str,
    unit: str,
    *,
    x_label: str = "step",
    share: bool = False,
) -> Figure:
    """Lines with their names at the right. `share`: the axis is 0 to 100 %."""
    figure, axes = style.panel(title, unit)
    for curve in curves:
        _draw(axes, curve)
    style.count_axis(axes, x_label)
    if share:
        style.share_axis(axes)
    else:
        _leave_room(axes, curves)
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


def _draw(axes: Axes, curve: Curve) -> None:
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=curve.color, alpha=0.16, linewidth=0)
    for x, y in curve.tails:
        axes.plot(x, y, color=curve.color, alpha=0.5, linewidth=0.8)
    (line,) = axes.plot(curve.x, curve.mean, color=curve.color, linewidth=curve.width, markersize=4)
    line.set(linestyle=curve.dash, solid_capstyle="round", marker="o" if len(curve.x) <= 12 else "None")


def _leave_room(axes: Axes, curves: Sequence[Curve]) -> None:
    """Begin at zero where no value is negative; a constant lies in the middle, not at the edge."""
    inner = _finite([a for c in curves for a in (c.mean, *(y for _, y in c.tails))])
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
