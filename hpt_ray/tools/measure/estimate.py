"""How good a gradient estimate is: scale, bias, variance and signal-to-noise, each with a 95 % interval.

In: for every prompt the mean x of its measured gradients, the mean of their squared lengths, and a reference y,
which is the policy gradient of its expected reward (exact, or unbiased and noisy). Prompts are taken as drawn at
random, so that each is one independent observation.

With m = E x, the method's mean, and t = E y, the true gradient, everything is a function of four moments:

    ⟨m, m⟩   ⟨m, t⟩   ⟨t, t⟩   E|g|², g being the gradient of one prompt in one step

The first three are means over pairs of different prompts (U-statistics). The noise of a prompt meets itself in none of
them, so it adds nothing: they are unbiased, however noisy x and y are. A squared length may therefore come out below 0.

A quantity f(moments) is, to first order, a U-statistic too: with the kernel K_ij = Σ ∂f/∂moment · its inner product of
i and j. Its variance is that of Hoeffding's decomposition (1948), 4ζ₁/P + 2ζ₂/P². Where a squared bias is 0, ζ₁ = 0 and
the second part is all there is; the usual delta method and the jackknife miss it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

Array = np.ndarray
LEVEL = 0.95
LEAST_PROMPTS = 4
NAN = float("nan")

# Of m·m, m·t, t·t and E|g|². What each means is in docs/meter.md.
QUANTITIES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "scale": lambda mm, mt, tt, square: mt / tt,  # how many times t is in m; 1 without bias
    "gap": lambda mm, mt, tt, square: (mm - 2 * mt + tt) / tt,  # |m − t|²/|t|², before any learning rate
    "cosine": lambda mm, mt, tt, square: mt / (mm * tt).sqrt(),
    # what the best learning rate leaves
    "bias": lambda mm, mt, tt, square: 1 - mt.clamp(min=0) ** 2 / (mm * tt),
    "mean_square": lambda mm, mt, tt, square: mm,
    "variance": lambda mm, mt, tt, square: square - mm,  # of a step of one prompt; N prompts have 1/N of it
    # prompts that a step needs for as much signal as noise
    "noise": lambda mm, mt, tt, square: (square - mm) / mm,
    "snr": lambda mm, mt, tt, square: mm / (square - mm),
}
OVER_MEAN = {"cosine", "bias", "noise"}  # divided by |m|²
OVER_TRUTH = {"scale", "gap", "cosine", "bias"}  # divided by |t|²


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; NaN where the data do not determine it."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return bool(np.isfinite([self.value, self.low, self.high]).all())

    def holds(self, truth: float) -> bool:
        return self.low <= truth <= self.high

    def over(self, divisor: float) -> Interval:
        return Interval(self.value / divisor, self.low / divisor, self.high / divisor)

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.2g}, {self.high:.2g}]" if self.known else "–"


UNKNOWN = Interval(NAN, NAN, NAN)


def quality(x: Array, squares: Array, y: Array) -> dict[str, Interval]:
    """Every quantity of `QUANTITIES`. `x`, `y` [P, D], `squares` [P] the mean |g|² of each prompt.

    What is divided by a squared length is `UNKNOWN` where that length is not known to within a half: an interval of
    such a quotient would mean nothing. ValueError: fewer than `LEAST_PROMPTS` prompts.
    """
    if len(x) < LEAST_PROMPTS:
        raise ValueError(
            f"{len(x)} prompts are too few for a variance between them; {LEAST_PROMPTS} are needed"
        )
    x, y = x.astype(np.float64), y.astype(np.float64)
    cross = x @ y.T
    kernels = [x @ x.T, (cross + cross.T) / 2, y @ y.T]
    for kernel in kernels:
        np.fill_diagonal(kernel, 0)
    squares = squares.astype(np.float64)
    mean_square, truth = (_measured(lambda *moments, k=k: moments[k], kernels, squares) for k in (0, 2))
    unknown = (set() if _is_sure(mean_square) else OVER_MEAN) | (set() if _is_sure(truth) else OVER_TRUTH)
    return {
        name: UNKNOWN if name in unknown else _measured(function, kernels, squares)
        for name, function in QUANTITIES.items()
    }


def _is_sure(length: Interval) -> bool:
    return 0 < length.value < 2 * length.low


def _measured(function: Callable[..., Tensor], kernels: list[Array], squares: Array) -> Interval:
    """A function of the moments: its value, and the interval by its derivatives."""
    count = len(squares)
    pairs = count * (count - 1)
    means = [*(kernel.sum() / pairs for kernel in kernels), squares.mean()]
    moments = [torch.tensor(mean, dtype=torch.float64, requires_grad=True) for mean in means]
    value = function(*moments)
    slopes = [0.0 if s is None else float(s) for s in torch.autograd.grad(value, moments, allow_unused=True)]
    kernel = sum((slope * kernel for slope, kernel in zip(slopes, kernels, strict=False)), np.zeros(()))
    mean = kernel.sum() / pairs
    first = 2 * (kernel.sum(1) / (count - 1) - mean) + slopes[-1] * (squares - squares.mean())
    # The mean of a row has the noise of its pairs in it, so where ζ₁ = 0 this errs on the wide side.
    second = 2 * ((kernel**2).sum() / pairs - mean**2) / pairs
    error = np.sqrt(np.var(first, ddof=1) / count + max(second, 0.0))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * error)
    return Interval(value.item(), value.item() - reach, value.item() + reach)
