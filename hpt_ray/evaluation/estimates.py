"""pass@k and means over prompts, each with a 95 % confidence interval. Pure functions of counts.

For one prompt, n samples were drawn and c of them were right. Over Q prompts a metric is the mean of a
value per prompt, and its interval is the normal one over prompts: ± 1.96 · s / √Q, with s the sample
standard deviation of the values. It covers both which prompts were asked and which answers were drawn.
It has no width where all prompts came out alike, and there is none for a single prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpt_ray.errors import UserError

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts and half the width of its 95 % interval (None for a single prompt)."""

    value: float
    half_width: float | None

    def as_json(self) -> dict[str, float | None]:
        return {"value": self.value, "ci95": self.half_width}


def pass_at_k(num_samples: int, num_correct: np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate of the chance that one of k samples is right (Chen et al., arXiv 2107.03374).

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
    """Raise UserError for a k of pass@k that n samples cannot answer."""
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
    if len(values) < 2:
        return Estimate(float(values.mean()), None)
    return Estimate(float(values.mean()), Z95 * float(values.std(ddof=1)) / len(values) ** 0.5)


def weighted_average(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Σ w·x / Σ w of independent estimates. Equal weights: the average over benchmarks, as papers give it."""
    shares = np.asarray(weights, np.float64) / sum(weights)
    value = float(sum(share * e.value for share, e in zip(shares, estimates, strict=True)))
    widths = [e.half_width for e in estimates]
    if any(width is None for width in widths):
        return Estimate(value, None)
    return Estimate(value, float(np.sqrt(np.sum((shares * np.array(widths, np.float64)) ** 2))))
