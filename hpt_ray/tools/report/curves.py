"""Curves over steps: one run's metrics with their noise, or the mean of several seeds with a band.

In: `Curve`s of plain arrays. Out: a figure. Mean and band cover the steps that every seed of a method has
reached; beyond, the longer ones are thin lines, since a mean over other seeds would jump.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpt_ray.evaluation.seed_stats import BANDS, rolling_mean, smoothing_window
from hpt_ray.tools.report.load import RunData, Series
from hpt_ray.tools.report.methods import Method
from hpt_ray.tools.report.style import (
    HEIGHT,
    SOFT,
    VERMILLION,
    End,
    count_axis,
    label_ends,
    panel,
    share_axis,
)


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


def smooth_curve(series: Series, label: str, color: str, dash: str = "-", *, smooth: bool = True) -> Curve:
    """A series of one run: its rolling mean, with the values themselves faintly behind."""
    window = smoothing_window(len(series)) if smooth else 1
    smoothed = rolling_mean(series.values, window)
    return Curve(label, color, series.steps, smoothed, raw=series.values if window > 1 else None, dash=dash)


def curves_of(
    methods: Sequence[Method],
    metric: str | Callable[[RunData], Series],
    *,
    band: str = "std",
    smooth: bool = True,
) -> list[Curve]:
    """One curve per method of which every run has the metric: mean over its seeds, and a band of `BANDS`.

    `metric` is a name of metrics.jsonl, or what makes a series of a run. With `smooth`, each seed is smoothed
    first, so that the band shows seeds and not steps.
    """
    curves = []
    for method in methods:
        read = metric if callable(metric) else lambda run: run.series(metric)
        all_series = [read(run) for run in method.runs]
        if not all_series or not all(map(len, all_series)):
            continue  # a mean over some of the seeds is not that of the method
        if smooth:
            window = smoothing_window(max(map(len, all_series)))
            all_series = [Series(s.steps, rolling_mean(s.values, window)) for s in all_series]
        steps, values = aligned(all_series)
        if not len(steps):
            continue
        low, high = BANDS[band][0](values) if len(values) > 1 else (None, None)
        tails = [(s.steps[late], s.values[late]) for s in all_series if sum(late := s.steps >= steps[-1]) > 1]
        mean = np.nanmean(values, axis=0)
        curves.append(
            Curve(method.label, method.color, steps, mean, low, high, dash=method.dash, tails=tails)
        )
    return curves


def aligned(all_series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] and values [seeds, N] up to where the shortest ends; NaN where a seed has none at a step."""
    end = min(series.steps[-1] for series in all_series)
    steps = np.unique(np.concatenate([series.steps[series.steps <= end] for series in all_series]))
    values = np.full((len(all_series), len(steps)), np.nan)
    for row, series in zip(values, all_series, strict=True):
        known = series.steps <= end
        row[np.searchsorted(steps, series.steps[known])] = series.values[known]
    return steps, values


def curves_figure(
    curves: Sequence[Curve],
    title: str,
    unit: str,
    *,
    x_label: str = "step",
    share: bool | None = False,
    log: bool = False,
    marks: Marks | None = None,
    height: float = HEIGHT,
) -> Figure:
    """Lines with their names at the right.

    `share`: the axis is 0 to 100 %; None: where all values are within.
    """
    if share is None:
        values = _finite([curve.mean for curve in curves])
        share = bool(values.min() >= 0 and values.max() <= 1)
    figure, axes = panel(title, unit, height=height)
    for curve in curves:
        _draw(axes, curve)
    count_axis(axes, x_label)
    if share:
        share_axis(axes)
    elif log:
        axes.set_yscale("log")
    else:
        _leave_room(axes, curves)
    mark_steps(axes, marks or Marks())
    ends = [End(curve.mean[-1], curve.label, curve.color, curve.dash) for curve in curves if curve.label]
    label_ends(axes, ends)
    return figure


@dataclass(frozen=True, slots=True)
class Marks:
    """What is marked on the axis of steps: those with a fault, and the first ones of later phases."""

    faults: Sequence[int] = ()
    phases: Sequence[int] = ()


def mark_steps(axes: Axes, marks: Marks) -> None:
    """Small triangles at the foot of the axes for faults; dotted lines where a phase begins."""
    for step in marks.phases:
        axes.axvline(step - 0.5, color=SOFT, linestyle=":", linewidth=1.0)
    if marks.faults:
        feet, place = np.zeros(len(marks.faults)), axes.get_xaxis_transform()
        style: dict[str, Any] = {"color": VERMILLION, "markersize": 6, "clip_on": False, "zorder": 5}
        axes.plot(marks.faults, feet, "^", transform=place, scaley=False, **style)


def _draw(axes: Axes, curve: Curve) -> None:
    single = len(curve.x) == 1
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=curve.color, alpha=0.16, linewidth=0)
    if curve.raw is not None:
        axes.plot(curve.x, curve.raw, color=curve.color, alpha=0.28, linewidth=0.8)
    for x, y in curve.tails:
        axes.plot(x, y, color=curve.color, alpha=0.5, linewidth=0.8)
    axes.plot(
        curve.x,
        curve.mean,
        color=curve.color,
        linestyle=curve.dash,
        linewidth=curve.width,
        solid_capstyle="round",
        marker="o" if single or len(curve.x) <= 12 else None,
        markersize=4,
    )


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
