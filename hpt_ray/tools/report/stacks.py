"""Parts of a whole over steps: outcomes of grading, reasons of the gate, seconds by phase. Series → figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hpt_ray.tools.report.curves import Marks, mark_steps
from hpt_ray.tools.report.load import Series
from hpt_ray.tools.report.style import GREY, SOFT, End, count_axis, label_ends, panel, share_axis

MOST_BARS = 60


def stack_figure(
    parts: Mapping[str, Series],
    colors: Sequence[str],
    title: str,
    unit: str,
    *,
    share: bool = False,
    marks: Marks | None = None,
) -> Figure:
    """Bars on top of each other, the first part at the bottom; many steps share one bar, which is their mean.

    A part without a value at a step counts as zero there. `share`: each bar is made to add up to 1.
    """
    steps, values = _table(parts)
    if share:
        values = values / np.maximum(values.sum(axis=0), 1e-12)
    per_bar = -(-len(steps) // MOST_BARS)
    starts = np.arange(0, len(steps), per_bar)
    counts = np.diff(np.append(starts, len(steps)))
    heights = np.add.reduceat(values, starts, axis=1) / counts
    middles = np.add.reduceat(steps, starts) / counts
    figure, axes = panel(title, unit + (f"; bars: means of {per_bar} steps" if per_bar > 1 else ""))
    bottom = np.zeros(len(starts))
    ends = []
    level = 0.0
    for row, name, color, mean in zip(heights, parts, colors, values.mean(axis=1), strict=False):
        axes.bar(middles, row, width=0.86 * per_bar, bottom=bottom, color=color, linewidth=0)
        bottom = bottom + row
        ends.append(End(level + mean / 2, name, SOFT if color == GREY else color))
        level += mean
    count_axis(axes, "step")
    if share:
        share_axis(axes)
    mark_steps(axes, marks or Marks())
    label_ends(axes, ends)
    return figure


def _table(parts: Mapping[str, Series]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] and values [parts, N]."""
    steps = np.unique(np.concatenate([series.steps for series in parts.values()]))
    values = np.zeros((len(parts), len(steps)))
    for row, series in zip(values, parts.values(), strict=True):
        row[np.searchsorted(steps, series.steps)] = series.values
    return steps, values
