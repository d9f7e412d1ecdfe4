"""A scored pack to its share of the step's loss: the only place where packs meet the estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hpt_ray.algorithms import Estimator, RowWeights, TokenRows
from hpt_ray.types import Pack


def pack_loss(
    estimator: Estimator,
    pack: Pack,
    logp: torch.Tensor,
    entropy: torch.Tensor,
    logp_old: torch.Tensor,
    logp_ref: np.ndarray | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Loss (scalar with gradient) and additive statistics of one pack.

    `logp` and `entropy` [R] are the policy's on the pack's response tokens, `logp_old` [R] those of π_old,
    not read on demonstrations, `logp_ref` [R] the frozen policy's. The losses of all packs on all ranks add
    up to the loss of the optimizer step.
    """
    rows = TokenRows(
        logp_now=logp,
        logp_old=logp_old.to(logp.device),
        row_lengths=torch.from_numpy(pack.response_lengths),
        group_ids=torch.from_numpy(pack.group_ids),
        rewards=torch.zeros(len(pack.row_lengths)),  # already in the advantages
        is_demo=torch.from_numpy(pack.is_demo),
        entropy=entropy,
        logp_ref=None if logp_ref is None else torch.from_numpy(logp_ref),
    )
    return estimator.loss(rows, RowWeights(pack.advantages, pack.scales, pack.entropy_scales, pack.kl_scales))
