"""What a forward pass tells about its samples, as sums and counts that add up.

In: a `TokenView`. Out: name → (sum, count), float64 scalars on its device; adding the pairs of
micro-batches and ranks, then dividing, gives the mean over all their tokens. The estimator adds
the shares of clipped and corrected tokens and the KL.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hpt_ray.algorithms.batch import TokenView

Stats = dict[str, tuple[Tensor, Tensor]]


def token_stats(view: TokenView) -> Stats:
    """How far π_θ is from the sampler's π_old on rollouts, the loss on demonstrations, the entropy.

    `policy/ratio` and `policy/ratio_squared` of w = π_θ/π_old are what `effective_sample_size` needs;
    `policy/kl_old` is the k3 estimate of KL(π_old‖π_θ), in nats per token.
    """
    rollout = ~view.is_demo
    log_ratio = view.log_ratio_old.double()
    ratio = log_ratio.exp()
    stats = {
        "policy/ratio": masked(ratio, rollout),
        "policy/ratio_squared": masked(ratio.square(), rollout),
        "policy/kl_old": masked(ratio - 1 - log_ratio, rollout),
        "learner/demo_loss": masked(-view.logprob, view.is_demo),
    }
    if view.entropy is not None:
        stats["policy/entropy"] = masked(view.entropy, torch.ones_like(rollout))
    return stats


def masked(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the masked values."""
    total = torch.where(mask, values, torch.zeros_like(values)).sum(dtype=torch.float64)
    return total, mask.sum(dtype=torch.float64)


def effective_sample_size(stats: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> float:
    """(Σw)²/(N Σw²) of the importance weights w = π_θ/π_old of N tokens: 1 when all agree, 1/N at worst."""
    total, count = (float(x) for x in stats["policy/ratio"])
    squares = float(stats["policy/ratio_squared"][0])
    return total**2 / (count * squares) if count else 1.0
