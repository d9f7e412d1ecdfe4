"""The parts of c = m · Â · s · π_θ/π_ref that are per token, all but Â, and the KL terms beside it.

In: a `TokenView`. Out: [R] in logs and detached, so that no factor overflows alone: a dropped token is −inf, a
kept one 0. Four tables, in the order of the formula:

    CLIPS          m    the stabilisation mask: which tokens are held back, for π_θ moved too far from π_ref
    SHAPINGS       s    the factor of the likelihood term: the derivative of what is put in the place of π_θ
    DENOMINATORS   the reference policy π_ref, by whose probability a token's gradient ∇π_θ is divided; not to be
                   confused with the frozen policy of KL terms
    CORRECTIONS    what replaces π_θ/π_ref where the sampler does not give exactly the learner's probabilities

`old` and `sequence`, and every correction, read the sampler's logprobs and so exist for rollouts only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hpt_ray.algorithms.base import Part, Stream
from hpt_ray.algorithms.batch import Settings, TokenView
from hpt_ray.algorithms.outside import Table

# ---- stabilisation masks m ---------------------------------------------------------------------------
# In: [R] log(π_θ/π_ref) and Â. The test is on whatever ratio the denominator gives, per token for `old`, one per
# sample for `sequence`: PPO's clip and GSPO's sequence clip are the same function.


def no_clip(log_ratio: Tensor, advantage: Tensor, settings: Settings) -> Tensor:
    return torch.zeros_like(log_ratio)


def ppo_clip(log_ratio: Tensor, advantage: Tensor, settings: Settings) -> Tensor:
    low, high = log_bounds(settings)
    harmful = ((advantage > 0) & (log_ratio > high)) | ((advantage < 0) & (log_ratio < low))
    return torch.zeros_like(log_ratio).masked_fill_(harmful, -math.inf)


def cispo_clip(log_ratio: Tensor, advantage: Tensor, settings: Settings) -> Tensor:
    low, high = log_bounds(settings)
    return log_ratio.clamp(low, high) - log_ratio


def log_bounds(settings: Settings) -> tuple[float, float]:
    """log(1−ε_low) and log(1+ε_high); −inf where ε_low ≥ 1 leaves no lower bound."""
    low = math.log(1 - settings.clip_low) if settings.clip_low < 1 else -math.inf
    return low, math.log1p(settings.clip_high)


_RATIO = frozenset({"ratio", "clip"})

CLIPS: Table[Part] = Table(
    Part,
    {
        "none": Part(no_clip, "m = 1"),
        "ppo": Part(
            ppo_clip,
            "m = 0 if (Â > 0 and π_θ/π_ref > 1+ε_high) or (Â < 0 and π_θ/π_ref < 1−ε_low), else 1",
            _RATIO,
        ),
        "cispo": Part(
            cispo_clip, "m = clip(ρ, 1−ε_low, 1+ε_high)/ρ  (a capped weight; no token is dropped)", _RATIO
        ),
    },
    "log_ratio, advantage, settings",
    Part,
)

# ---- likelihood shapings s ---------------------------------------------------------------------------


def no_shaping(view: TokenView) -> Tensor:
    return torch.zeros_like(view.logprobs)


def luffy(view: TokenView) -> Tensor:
    """f'(p) of f(p) = p/(p+γ): at most 1/γ, reached as p → 0 (arXiv 2504.14945, §3)."""
    gamma = view.settings.shaping_gamma
    return math.log(gamma) - 2 * torch.log(view.logprobs.exp() + gamma)


def focal(view: TokenView) -> Tensor:
    """(1−p)^γ: a token counts the less the surer the policy is of it; −inf where p = 1 (arXiv 1708.02002, Eq 4)."""
    return view.settings.shaping_gamma * torch.log(-torch.expm1(view.logprobs))


def low_entropy(view: TokenView) -> Tensor:
    return -high_entropy(view)


def high_entropy(view: TokenView) -> Tensor:
    if view.entropy is None:
        raise ValueError("an entropy shaping needs the entropy of every response token")
    return view.sample_mean(view.entropy)


def top_entropy(view: TokenView) -> Tensor:
    """0 on the share γ of a sample's tokens where the policy is least sure, −inf elsewhere (arXiv 2507.01679, §3)."""
    if view.entropy is None:
        raise ValueError("an entropy shaping needs the entropy of every response token")
    order = torch.argsort(view.entropy, stable=True)
    order = order[torch.argsort(view.sample_of_token[order], stable=True)]  # sample by sample, rising in each
    lengths = view.lengths[view.sample_of_token]
    place = (
        torch.arange(len(order), device=order.device)
        - (view.lengths.cumsum(0) - view.lengths)[view.sample_of_token]
    )
    kept = torch.ceil(view.settings.shaping_gamma * lengths - 1e-6)
    log_shape = torch.zeros_like(view.logprobs)
    log_shape[order] = torch.where(place >= lengths - kept, 0.0, -math.inf).to(log_shape)
    return log_shape


_ENTROPY = frozenset({"entropy"})

SHAPINGS: Table[Part] = Table(
    Part,
    {
        "none": Part(no_shaping, "s = 1"),
        "luffy": Part(luffy, "s = f'(π_θ) = γ/(π_θ+γ)², of f(p) = p/(p+γ)", frozenset({"shaping_gamma"})),
        "focal": Part(focal, "s = (1 − π_θ)^γ", frozenset({"shaping_gamma"})),
        "low_entropy": Part(low_entropy, "s = exp(−H), H = mean token entropy of the sample", _ENTROPY),
        "top_entropy": Part(
            top_entropy,
            "s = 1 on the share γ of the sample's tokens with the highest entropy, else 0",
            _ENTROPY | {"shaping_gamma"},
        ),
        "high_entropy": Part(high_entropy, "s = exp(+H), H = mean token entropy of the sample", _ENTROPY),
    },
    "view",
    Part,
)

# ---- reference policies π_ref: log(π_θ/π_ref) --------------------------------------------------------


def current(view: TokenView) -> Tensor:
    return torch.zeros_like(view.logprobs)


def old(view: TokenView) -> Tensor:
    return view.log_ratio_old


def sequence(view: TokenView) -> Tensor:
    return view.sample_mean(view.log_ratio_old)


def one(view: TokenView) -> Tensor:
    return view.logprobs


def mixture(view: TokenView) -> Tensor:
    """Multiple importance sampling: a demonstration as if drawn half from π_old, half from its unknown author π_ω.

    (π_ω + π_old)/2 with π_ω taken as (π_old + 1)/2. π_old is the policy as the update begins, which is π_θ.
    """
    return view.logprobs - torch.log(0.75 * view.logprobs.exp() + 0.25)


def frozen(view: TokenView) -> Tensor:
    if view.ref_logprobs is None:
        raise ValueError("the denominator frozen needs TokenBatch.ref_logprobs")
    return view.sample_mean(view.logprobs - view.ref_logprobs)


_OLD = frozenset({"old"})
_NOT_DRAWN: dict[Stream, str] = {"rollouts": "rollouts are drawn from π_old: use old"}
_NO_OLD: dict[Stream, str] = {
    "demonstrations": "no policy of ours sampled a demonstration, so π_old is unknown there"
}

DENOMINATORS: Table[Part] = Table(
    Part,
    {
        "current": Part(current, "π_ref = sg(π_θ), so π_θ/π_ref = 1"),
        "old": Part(old, "π_ref = π_old, so π_θ/π_ref = ρ_t", _OLD, _NO_OLD),
        "sequence": Part(
            sequence, "π_ref = π_θ/s_i with s_i = (π_θ(τ)/π_old(τ))^(1/L), so π_θ/π_ref = s_i", _OLD, _NO_OLD
        ),
        "one": Part(
            one,
            "π_ref = 1, so π_θ/π_ref = π_θ",
            not_for={"rollouts": "rollouts are drawn from π_old, not evenly over all responses"},
        ),
        "mixture": Part(
            mixture,
            "π_ref = (π_ω + π_θ)/2 with π_ω = (π_θ + 1)/2, so π_θ/π_ref = π_θ/(¾π_θ + ¼)",
            not_for=_NOT_DRAWN,
        ),
        "frozen": Part(
            frozen,
            "π_ref = π_θ/w with w = (π_θ(τ)/π_frozen(τ))^(1/L), so π_θ/π_ref = w",
            frozenset({"reference"}),
            _NOT_DRAWN,
        ),
    },
    "view",
    Part,
)

# ---- corrections of the sampler ----------------------------------------------------------------------
# Let w be the importance weight of the learner's policy over the sampler's: per token w_t = π_θ/π_old, per
# sequence w = Π_t w_t. A correction replaces the weight a term carries (1 for the denominator `current`, w for
# `old`) by a bounded one: truncated, min(w, high); or masked, w inside [low, high] and 0 outside ("truncated" and
# "masked importance sampling" in the field).


def no_correction(log_weight: Tensor, view: TokenView) -> Tensor:
    return log_weight


def token_truncate(log_weight: Tensor, view: TokenView) -> Tensor:
    return _truncate(view.log_ratio_old, view.settings)


def token_mask(log_weight: Tensor, view: TokenView) -> Tensor:
    return _mask(view.log_ratio_old, view.settings)


def sequence_truncate(log_weight: Tensor, view: TokenView) -> Tensor:
    return _truncate(view.sample_sum(view.log_ratio_old), view.settings)


def sequence_mask(log_weight: Tensor, view: TokenView) -> Tensor:
    return _mask(view.sample_sum(view.log_ratio_old), view.settings)


def _truncate(log_weight: Tensor, settings: Settings) -> Tensor:
    return log_weight.clamp(max=math.log(settings.correction_high))


def _mask(log_weight: Tensor, settings: Settings) -> Tensor:
    low, high = math.log(settings.correction_low), math.log(settings.correction_high)
    return log_weight.masked_fill((log_weight < low) | (log_weight > high), -math.inf)


_SEQUENCE = frozenset({"old", "sequence"})

CORRECTIONS: Table[Part] = Table(
    Part,
    {
        "none": Part(no_correction, "no correction"),
        "token_truncate": Part(token_truncate, "weight min(w_t, high)", _OLD),
        "token_mask": Part(token_mask, "weight w_t where low ≤ w_t ≤ high, else 0", _OLD),
        "sequence_truncate": Part(sequence_truncate, "weight min(Π_t w_t, high)", _SEQUENCE),
        "sequence_mask": Part(sequence_mask, "weight Π_t w_t where low ≤ Π_t w_t ≤ high, else 0", _SEQUENCE),
    },
    "log_weight, view",
    Part,
)

# ---- KL(π_θ‖π_frozen) against a frozen policy: a loss term, or in the reward -------------------------
# Per token (Schulman, "Approximating KL divergence", 2020), with d = log π_θ − log π_frozen on tokens drawn
# from π_θ:
#
#     k1 = d               gradient 1·∇log π_θ: zero on average, so it regularises only in the reward
#     k2 = ½ d²            gradient d·∇log π_θ: unbiased for ∇KL(π_θ‖π_frozen)
#     k3 = e^(−d) − 1 + d  gradient (1 − e^(−d))·∇log π_θ: equal to k2's to first order in d; GRPO's choice
#
# All hold for fresh samples; after several updates on the same rollouts they are not re-weighted.

KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: 0.5 * d.square(),
    "k3": lambda d: torch.expm1(-d) + d,
}


def kl_token_rewards(
    old_logprobs: np.ndarray, ref_logprobs: np.ndarray, coef: float, estimator: str
) -> np.ndarray:
    """−β·KL per response token, [R] float64, for KL in the reward. Give it rollouts only.

    Add it to the rewards of tokens (`gae`), or its sum over a sample to that sample's reward.
    """
    difference = torch.from_numpy(np.asarray(old_logprobs, np.float64) - np.asarray(ref_logprobs, np.float64))
    return -coef * KL_ESTIMATORS[estimator](difference).numpy()
