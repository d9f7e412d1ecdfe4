"""Means over seeds and what says how far they scatter. Pure functions of numbers.

Seeds are few, so the 95 % interval is that of Student's t: mean ± t · s / √n, with s the sample standard
deviation. It takes the seeds as independent draws and says nothing about other data or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean of n values, sample standard deviation and half a 95 % interval (both None for n = 1)."""

    n: int
    mean: float
    std: float | None
    ci95: float | None

    def text(self, scale: float = 100.0, digits: int = 1) -> str:
        """`97.2 ± 1.3`: mean and standard deviation, in percent unless told otherwise."""
        scatter = "" if self.std is None else f" ± {scale * self.std:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{scatter}"


def spread_of(values: Sequence[float]) -> Spread:
    """Raises `ValueError` for no values."""
    if not len(values):
        raise ValueError("no values")
    n, array = len(values), np.asarray(values, float)
    if n < 2:
        return Spread(n, float(array[0]), None, None)
    std = float(array.std(ddof=1))
    return Spread(n, float(array.mean()), std, float(stats.t.ppf(0.975, n - 1)) * std / n**0.5)


Edges = tuple[np.ndarray, np.ndarray]


def _std(values: np.ndarray) -> Edges:
    mean, half = np.nanmean(values, axis=0), _sample_std(values)
    return mean - half, mean + half


def _ci95(values: np.ndarray) -> Edges:
    n = np.sum(np.isfinite(values), axis=0)
    t = stats.t.ppf(0.975, np.maximum(n - 1, 1))
    mean, half = np.nanmean(values, axis=0), t * _sample_std(values) / np.sqrt(n)
    return mean - half, mean + half


def _range(values: np.ndarray) -> Edges:
    return np.nanmin(values, axis=0), np.nanmax(values, axis=0)


def _sample_std(values: np.ndarray) -> np.ndarray:
    """Over seeds; 0 where only one has a value."""
    n = np.sum(np.isfinite(values), axis=0)
    squares = np.nansum((values - np.nanmean(values, axis=0)) ** 2, axis=0)
    return np.sqrt(squares / np.maximum(n - 1, 1))


# Name → (edges of values [seeds, N], what it is in words).
BANDS: dict[str, tuple[Callable[[np.ndarray], Edges], str]] = {
    "std": (_std, "± one standard deviation over the seeds"),
    "ci95": (_ci95, "95 % interval of the mean over the seeds (Student's t)"),
    "range": (_range, "lowest to highest seed"),
}


def rolling_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the up to `window` values around each one; the window shrinks at the ends. [N] → [N].

    Example: `rolling_mean([0, 3, 6], 3)` is `[1.5, 3, 4.5]`.
    """
    values = np.asarray(values, float)
    half = window // 2
    if half == 0 or len(values) < 3:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(len(values))
    low, high = np.maximum(ends - half, 0), np.minimum(ends + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def smoothing_window(num_points: int) -> int:
    """Odd, and about a twentieth of the points: 1 (none) below 30."""
    return 1 if num_points < 30 else 2 * (num_points // 40) + 1
