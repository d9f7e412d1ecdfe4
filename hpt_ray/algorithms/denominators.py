"""Reference denominators π_ref: by which probability a token's gradient ∇π_θ is divided.

In: a `TokenView`. Out: [R] log(π_θ/π_ref), detached. Not to be confused with the frozen policy of
KL terms. `old` and `sequence` read the sampler's log-probs and so exist for rollouts only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpt_ray.algorithms.base import Part, Stream
from hpt_ray.algorithms.batch import TokenView


def current(view: TokenView) -> Tensor:
    return torch.zeros_like(view.logprob)


def old(view: TokenView) -> Tensor:
    return view.log_ratio_old


def sequence(view: TokenView) -> Tensor:
    return view.sample_mean(view.log_ratio_old)


def unit(view: TokenView) -> Tensor:
    return view.logprob


_NO_OLD: dict[Stream, str] = {
    "demonstrations": "no policy of ours sampled a demonstration, so π_old is unknown there"
}

DENOMINATORS: dict[str, Part] = {
    "current": Part(current, "π_ref = sg(π_θ), so π_θ/π_ref = 1"),
    "old": Part(old, "π_ref = π_old, so π_θ/π_ref = ρ_t", frozenset({"old"}), _NO_OLD),
    "sequence": Part(
        sequence,
        "π_ref = π_θ/s_i with s_i = (π_θ(τ)/π_old(τ))^(1/L), so π_θ/π_ref = s_i",
        frozenset({"old"}),
        _NO_OLD,
    ),
    "one": Part(
        unit,
        "π_ref = 1, so π_θ/π_ref = π_θ",
        not_for={"rollouts": "rollouts are drawn from π_old, not evenly over all responses"},
    ),
}
