"""Likelihood shapings s: the derivative of what is put in the place of π_θ, or a detached weight.

In: a `TokenView`. Out: [R] log s, detached.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpt_ray.algorithms.base import Part
from hpt_ray.algorithms.batch import TokenView


def none(view: TokenView) -> Tensor:
    return torch.zeros_like(view.logprob)


def luffy(view: TokenView) -> Tensor:
    """f'(p) of f(p) = p/(p+γ): at most 1/γ, reached as p → 0 (arXiv 2504.14945, §3)."""
    gamma = view.settings.shaping_gamma
    return math.log(gamma) - 2 * torch.log(view.logprob.exp() + gamma)


def low_entropy(view: TokenView) -> Tensor:
    return -_sample_entropy(view)


def high_entropy(view: TokenView) -> Tensor:
    return _sample_entropy(view)


def _sample_entropy(view: TokenView) -> Tensor:
    if view.entropy is None:
        raise ValueError("an entropy shaping needs the entropy of every response token")
    return view.sample_mean(view.entropy)


_ENTROPY = frozenset({"entropy"})

SHAPINGS: dict[str, Part] = {
    "none": Part(none, "s = 1"),
    "luffy": Part(luffy, "s = f'(π_θ) = γ/(π_θ+γ)², of f(p) = p/(p+γ)", frozenset({"shaping_gamma"})),
    "low_entropy": Part(low_entropy, "s = exp(−H), H = mean token entropy of the sample", _ENTROPY),
    "high_entropy": Part(high_entropy, "s = exp(+H), H = mean token entropy of the sample", _ENTROPY),
}
