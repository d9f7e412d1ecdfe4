"""KL(π_θ‖π_frozen) against a frozen reference policy: as a loss term or in the reward.

Estimators per token (Schulman, "Approximating KL divergence", 2020), with d = log π_θ − log π_frozen
on tokens drawn from π_θ:

    k1 = d               gradient 1·∇log π_θ: zero on average, so it regularises only in the reward
    k2 = ½ d²            gradient d·∇log π_θ: unbiased for ∇KL(π_θ‖π_frozen)
    k3 = e^(−d) − 1 + d  gradient (1 − e^(−d))·∇log π_θ: equal to k2's to first order in d; GRPO's choice

All hold for fresh samples; after several updates on the same rollouts they are not re-weighted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

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
