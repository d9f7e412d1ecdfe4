"""Every statistic that a result is told with, as pure functions of counts and numbers.

Over prompts: one prompt was sampled n times and c of the responses were correct. A metric is the mean of a value
per prompt, and its 95 % interval is the normal one over the Q prompts: ± 1.96 · s / √Q, with s the sample standard
deviation. It covers both which prompts were asked and which responses were sampled. It has no width where all
prompts came out alike, and there is none for a single prompt.

Over seeds: they are few, so the interval is that of Student's t: ± t · s / √n. It takes the seeds as independent
draws and says nothing about other data or models. Runs of one seed share the order of the prompts, so two methods
are compared seed by seed where they have seeds in common, and else by Welch's test. Many comparisons make some
small p by chance: `holm` corrects for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hpt_ray.errors import UserError

Z95 = float(stats.norm.ppf(0.975))


def percent(value: float, half_width: float | None = None, sign: str = "") -> str:
    """`97.2 ± 1.3`, or `+97.2 ± 1.3` with `sign="+"`."""
    return f"{100 * value:{sign}.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")


# -- over prompts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts and half the width of its 95 % interval (None for a single prompt)."""

    value: float
    half_width: float | None

    def as_json(self) -> dict[str, float | None]:
        return {"value": self.value, "ci95": self.half_width}


def pass_at_k(num_samples: int, num_correct: np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate of the chance that one of k samples is correct (Chen et al., arXiv 2107.03374).

    1 − C(n−c, k) / C(n, k) for every c of `num_correct` [Q], as the product Π_{i=n−c+1}^{n} (1 − k/i):
    no binomial is computed, so n may be in the thousands. Exactly 1 where c > n − k.
    Raises UserError where n < k: fewer samples say nothing about k of them.
    """
    check_ks([k], num_samples)
    factors = 1.0 - k / np.arange(num_samples, 0, -1.0)
    # Past i = k the factors are negative, after one that is exactly zero.
    fails = np.concatenate([[1.0], np.cumprod(np.maximum(factors, 0.0))])
    return 1.0 - fails[num_correct]


def bootstrap_pass_at_k(num_samples: int, num_correct: np.ndarray, k: int) -> np.ndarray:
    """What drawing k of the n samples with replacement comes to, over infinitely many draws: 1 − (1 − c/n)^k.

    This is the bootstrap (paper, section 4.1) without its noise. It is biased: 0 < c < n with k = n does not
    give 1. Drawn without replacement, the bootstrap is `pass_at_k`. Raises UserError where n < k.
    """
    check_ks([k], num_samples)
    return 1.0 - (1.0 - np.asarray(num_correct) / num_samples) ** k


def check_ks(ks: Sequence[int], num_samples: int) -> None:
    """Raise UserError for a k of pass@k for which n samples are too few."""
    for k in ks:
        if not 1 <= k <= num_samples:
            raise UserError(
                f"pass@{k} needs at least {k} samples per prompt, and there are {num_samples}: raise "
                "`samples`, or lower `pass_k`."
            )


def default_ks(num_samples: int) -> list[int]:
    """The powers of two up to n. Example: `default_ks(6) == [1, 2, 4]`."""
    return [2**i for i in range(num_samples.bit_length())]


def mean_over_prompts(values: np.ndarray) -> Estimate:
    """The mean of a value per prompt [Q], with its normal interval over prompts."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), Z95 * float(stats.sem(values)) if len(values) > 1 else None)


def weighted_average(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Σ w·x / Σ w of independent estimates. Equal weights: the average over benchmarks, as papers give it."""
    shares = np.asarray(weights, np.float64) / sum(weights)
    value = float(shares @ [estimate.value for estimate in estimates])
    widths = [estimate.half_width for estimate in estimates if estimate.half_width is not None]
    return Estimate(value, float(np.linalg.norm(shares * widths)) if len(widths) == len(shares) else None)


# -- over seeds ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean of n values, sample standard deviation and half a 95 % interval (both None for n = 1)."""

    n: int
    mean: float
    std: float | None
    ci95: float | None
    over: str = "seeds"  # what the interval covers

    def text(self) -> str:
        """`97.2 ± 1.3`: mean and standard deviation in percent."""
        return percent(self.mean, self.std)


def spread_of(values: Sequence[float] | np.ndarray) -> Spread:
    """Raises `ValueError` for no values."""
    if not len(values):
        raise ValueError("no values")
    n, array = len(values), np.asarray(values, float)
    if n < 2:
        return Spread(n, float(array[0]), None, None)
    half_width = float(stats.t.ppf(0.975, n - 1) * stats.sem(array))
    return Spread(n, float(array.mean()), float(array.std(ddof=1)), half_width)


def band_of(values: np.ndarray, kind: str = "std") -> tuple[np.ndarray, np.ndarray]:
    """The edges of a band around the mean of values [seeds, N]; it has no width where only one has a value.

    `kind`: `std`, ± one standard deviation over the seeds, or `ci95`, Student's interval of the mean.
    """
    n = np.sum(np.isfinite(values), axis=0)
    others = np.maximum(n - 1, 1)
    half_width = np.nanstd(values, axis=0) * np.sqrt(n / others)
    if kind == "ci95":
        half_width *= stats.t.ppf(0.975, others) / np.sqrt(n)
    mean = np.nanmean(values, axis=0)
    return mean - half_width, mean + half_width


def rolling_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the up to `window` values around each one; the window shrinks at the ends. [N] → [N].

    `window` is odd. Example: `rolling_mean([0, 3, 6], 3)` is `[1.5, 3, 4.5]`.
    """
    sums, counts = (np.convolve(array, np.ones(window)) for array in (values, np.ones(len(values))))
    return (sums / counts)[window // 2 :][: len(values)]


def smoothing_window(num_points: int) -> int:
    """Odd, and about a twentieth of the points: 1 (none) below 30."""
    return 1 if num_points < 30 else 2 * (num_points // 40) + 1


# -- differences -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of A − B over n seeds and half a 95 % interval. None where there is no scatter to tell it from."""

    n: int
    mean: float
    ci95: float | None
    p_t: float | None
    p_permutation: float | None = None
    over: str = "seeds"  # what the interval covers


def welch_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """A − B by Welch's t test, whatever the seeds; n is that of the smaller side.

    Interval and p are None where a side has one seed, or neither scatters.
    """
    n, mean = min(len(a), len(b)), float(np.mean(a) - np.mean(b))
    if n < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return Difference(n, mean, None, None)
    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return Difference(n, mean, float(high - low) / 2, float(test.pvalue))


def sign_flip_p(deltas: np.ndarray) -> float:
    """Two-sided p of a mean of 0 under all 2^n flips of sign (or 9 999 random ones where n > 13). [n] → p."""
    result = stats.permutation_test(
        (np.asarray(deltas, float),), np.mean, permutation_type="samples", vectorized=True, rng=0
    )
    return float(result.pvalue)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979); None stays None.

    Example: `holm([0.01, 0.04, 0.03])` is `[0.03, 0.06, 0.06]`.
    """
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[i] = highest
    return corrected
