"""What the critic of PPO needs: GAE on the driver's side and the value loss on the learner's.

Pure functions on flat response tokens. The critic itself, its optimizer and its export live with
the learner.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def gae(
    rewards: np.ndarray, values: np.ndarray, sample_lengths: np.ndarray, *, discount: float, lam: float
) -> np.ndarray:
    """Generalised advantage estimation (arXiv 1506.02438, Eq 16), [R] float64.

    δ_t = r_t + γ V_{t+1} − V_t with V = 0 after the last token; Â_t = δ_t + γλ Â_{t+1}.
    `rewards` and `values` are [R]; the critic's targets are `values + gae(…)`.
    """
    num_samples, longest = len(sample_lengths), int(sample_lengths.max(initial=0))
    inside = np.arange(longest) < sample_lengths[:, None]
    reward, value, advantage = (np.zeros((num_samples, longest)) for _ in range(3))
    reward[inside], value[inside] = rewards, values
    next_value, next_advantage = np.zeros(num_samples), np.zeros(num_samples)
    for t in reversed(range(longest)):
        delta = reward[:, t] + discount * next_value - value[:, t]
        # Outside the sample everything is 0, so a shorter sample starts from 0 at its own end.
        next_advantage = np.where(inside[:, t], delta + discount * lam * next_advantage, 0.0)
        next_value = value[:, t]
        advantage[:, t] = next_advantage
    return advantage[inside]


def clipped_value_loss(values: Tensor, values_old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V − G)², (clip(V, V_old ± ε) − G)²) per token, [R]; `clip` ε = inf for no clip.

    The value moves at most ε from the one the advantages were made with (PPO's reference code).
    """
    near = torch.clamp(values, values_old - clip, values_old + clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
