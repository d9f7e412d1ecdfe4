"""From runs and methods to curves: the mean of several seeds with a band, pass@k.

Mean and band cover the steps that every seed of a method has reached; beyond, the longer ones are thin lines,
since a mean over other seeds would jump. A curve of pass@k of several seeds is the mean of theirs ± one standard
deviation; one of a single run has the 95 % interval over prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from hpt_ray.evaluation import statistics
from hpt_ray.evaluation.results import PromptResult
from hpt_ray.tools.report.figures import Curve
from hpt_ray.tools.report.load import RunData, Series
from hpt_ray.tools.report.methods import Method


def curves_of(
    methods: Sequence[Method],
    metric: str | Callable[[RunData], Series],
    *,
    band: str = "std",
) -> list[Curve]:
    """One curve per method of which every run has the metric: mean over its seeds, and a band: see `band_of`.

    `metric` is a name of metrics.jsonl, or what makes a series of a run. Each seed is smoothed first, so that
    the band shows seeds and not steps.
    """
    curves = []
    for method in methods:
        all_series = [metric(run) if callable(metric) else run.series(metric) for run in method.runs]
        if not all_series or not all(map(len, all_series)):
            continue  # a mean over some of the seeds is not that of the method
        window = statistics.smoothing_window(max(map(len, all_series)))
        all_series = [Series(s.steps, statistics.rolling_mean(s.values, window)) for s in all_series]
        steps, values = aligned(all_series)
        if not len(steps):
            continue
        low, high = statistics.band_of(values, band) if len(values) > 1 else (None, None)
        tails = [(s.steps[late], s.values[late]) for s in all_series if sum(late := s.steps >= steps[-1]) > 1]
        mean, dash = np.nanmean(values, axis=0), method.dash
        curves.append(Curve(method.label, method.color, steps, mean, low, high, dash=dash, tails=tails))
    return curves


def aligned(all_series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] and values [seeds, N] up to where the shortest ends; NaN where a seed has none at a step."""
    steps = functools.reduce(np.union1d, [series.steps for series in all_series])
    steps = steps[steps <= min(series.steps[-1] for series in all_series)]
    return steps, np.stack([series.at(steps, np.nan) for series in all_series])


def mean_over_sets(run: RunData, names: Sequence[str] | None = None) -> Series:
    """The mean over these eval sets, or all, at the steps where each has a value; empty where one is not there."""
    found = run.evaluations()
    names = list(found) if names is None else names
    if not names or not found.keys() >= set(names):
        return Series(np.zeros(0, int), np.zeros(0))
    common = functools.reduce(np.intersect1d, [found[name].steps for name in names])
    return Series(common, np.mean([found[name].at(common) for name in names], axis=0))


# -- pass@k ----------------------------------------------------------------------------------------


def chances(rows: Sequence[PromptResult]) -> tuple[np.ndarray, np.ndarray]:
    """k [K], and for each prompt the chance that one of k samples is correct [K, Q]; for the powers of two
    up to the fewest samples that a prompt has."""
    n, correct = np.array([(row.n, row.correct) for row in rows]).T
    ks = np.array(statistics.default_ks(int(n.min())))
    found = np.zeros((len(ks), len(rows)))
    for num in np.unique(n):
        found[:, n == num] = [statistics.pass_at_k(int(num), correct[n == num], int(k)) for k in ks]
    return ks, found


def pass_curve(rows: Sequence[PromptResult]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k [K], pass@k [K] and half its 95 % interval over prompts [K], for the k of `chances`."""
    ks, found = chances(rows)
    estimates = [statistics.mean_over_prompts(of_k) for of_k in found]
    return ks, np.array([e.value for e in estimates]), np.array([e.half_width or 0.0 for e in estimates])


def pass_curves(methods: Sequence[Method], benchmark: str) -> list[Curve]:
    """One curve per method whose every run was evaluated on the benchmark."""
    curves = []
    for method in methods:
        if not all(benchmark in run.results for run in method.runs):
            continue
        found = [pass_curve(run.results[benchmark]) for run in method.runs]
        num = min(len(ks) for ks, _, _ in found)
        values = np.stack([value[:num] for _, value, _ in found])
        ks, _, half = (array[:num] for array in found[0])
        mean = values.mean(axis=0)
        low, high = statistics.band_of(values) if len(found) > 1 else (mean - half, mean + half)
        curves.append(Curve(method.label, method.color, ks, mean, low, high, dash=method.dash))
    return curves
