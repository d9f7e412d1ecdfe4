"""Stabilisation masks m: which tokens are held back because π_θ moved too far from π_ref.

In: [R] log(π_θ/π_ref) and Â, detached. Out: [R] log m, so that a dropped token is −inf and a kept
one 0. The test is on whatever ratio the denominator gives: per token for `old`, one per sample for
`sequence`; PPO's clip and GSPO's sequence clip are the same function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpt_ray.algorithms.base import Part
from hpt_ray.algorithms.batch import Settings


def none(log_ratio: Tensor, advantage: Tensor, settings: Settings) -> Tensor:
    return torch.zeros_like(log_ratio)


def clip(log_ratio: Tensor, advantage: Tensor, settings: Settings) -> Tensor:
    low, high = log_bounds(settings)
    harmful = ((advantage > 0) & (log_ratio > high)) | ((advantage < 0) & (log_ratio < low))
    return torch.zeros_like(log_ratio).masked_fill_(harmful, -math.inf)


def cap(log_ratio: Tensor, advantage: Tensor, settings: Settings) -> Tensor:
    low, high = log_bounds(settings)
    return log_ratio.clamp(low, high) - log_ratio


def log_bounds(settings: Settings) -> tuple[float, float]:
    """log(1−ε_low) and log(1+ε_high); −inf where ε_low ≥ 1 leaves no lower bound."""
    low = math.log(1 - settings.clip_low) if settings.clip_low < 1 else -math.inf
    return low, math.log1p(settings.clip_high)


_RATIO = frozenset({"ratio", "clip"})

CLIPS: dict[str, Part] = {
    "none": Part(none, "m = 1"),
    "ppo": Part(
        clip,
        "m = 0 if (Â > 0 and π_θ/π_ref > 1+ε_high) or (Â < 0 and π_θ/π_ref < 1−ε_low), else 1",
        _RATIO,
    ),
    "cispo": Part(cap, "m = clip(ρ, 1−ε_low, 1+ε_high)/ρ  (a capped weight; no token is dropped)", _RATIO),
}
