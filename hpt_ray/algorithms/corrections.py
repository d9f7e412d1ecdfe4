"""Corrections for a sampler that does not give exactly the learner's probabilities.

Let w be the importance weight of the learner's policy over the sampler's: per token
w_t = π_θ/π_old, per sequence w = Π_t w_t (π_old as the sampler reported it). A correction replaces
the weight a term carries (1 for the denominator `current`, w for `old`) by a bounded one: truncated,
min(w, high); or masked, w inside [low, high] and 0 outside ("truncated" and "masked importance
sampling" in the field). In: [R] log of the weight the term carries, and the `TokenView`. Out: [R] log
of the bounded weight. On demonstrations no sampler was involved; they are never corrected.
"""

from __future__ import annotations

import math

from torch import Tensor

from hpt_ray.algorithms.base import Part
from hpt_ray.algorithms.batch import Settings, TokenView


def none(log_weight: Tensor, view: TokenView) -> Tensor:
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


_OLD = frozenset({"old"})
_SEQUENCE = frozenset({"old", "sequence"})

CORRECTIONS: dict[str, Part] = {
    "none": Part(none, "no correction"),
    "token_truncate": Part(token_truncate, "weight min(w_t, high)", _OLD),
    "token_mask": Part(token_mask, "weight w_t where low ≤ w_t ≤ high, else 0", _OLD),
    "sequence_truncate": Part(sequence_truncate, "weight min(Π_t w_t, high)", _SEQUENCE),
    "sequence_mask": Part(sequence_mask, "weight Π_t w_t where low ≤ Π_t w_t ≤ high, else 0", _SEQUENCE),
}
