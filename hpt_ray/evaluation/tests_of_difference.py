"""Whether two methods differ, from their runs with the same seeds. Pure functions of numbers.

Runs of one seed share the order of the prompts, so the difference is taken seed by seed. Two tests stand side
by side: Student's t of the differences, and the exact sign-flip permutation test, which assumes less but
cannot go below 2 · 2^−n (0.25 for three seeds, 0.06 for five). Many comparisons make some small p by chance:
`holm` corrects for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of A − B over n common seeds and half a 95 % interval (t). None where there is no scatter."""

    n: int
    mean: float
    ci95: float | None
    p_t: float | None
    p_permutation: float | None

    @property
    def differs(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return self.ci95 is not None and abs(self.mean) > self.ci95


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """A − B over the seeds that both have; None where there is none."""
    deltas = np.array([a[seed] - b[seed] for seed in sorted(set(a) & set(b))])
    n = len(deltas)
    if n == 0:
        return None
    mean = float(deltas.mean())
    if n == 1:
        return Difference(1, mean, None, None, None)
    error = float(deltas.std(ddof=1)) / math.sqrt(n)
    # Where every seed differs by the same, t is infinite or 0/0 and says nothing.
    p_t = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else None
    return Difference(n, mean, float(stats.t.ppf(0.975, n - 1)) * error, p_t, sign_flip_p(deltas))


def sign_flip_p(deltas: np.ndarray) -> float:
    """Two-sided p of a mean of 0 under all 2^n flips of sign (or 9 999 random ones where n > 13). [n] → p."""
    result = stats.permutation_test(
        (np.asarray(deltas, float),),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=0,
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
