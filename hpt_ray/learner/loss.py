"""A scored micro-batch to its share of the step's loss: the only place where micro-batches meet the estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hpt_ray.algorithms import Estimator, SampleWeights, TokenBatch
from hpt_ray.types import MicroBatch


def micro_batch_loss(
    estimator: Estimator,
    micro_batch: MicroBatch,
    logprob: torch.Tensor,
    entropy: torch.Tensor,
    old_logprobs: torch.Tensor,
    ref_logprobs: np.ndarray | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Loss (scalar with gradient) and additive statistics of one micro-batch.

    `logprob` and `entropy` [R] are the policy's on its response tokens, `old_logprobs` [R] those of π_old,
    not read on demonstrations, `ref_logprobs` [R] the frozen policy's. The losses of all micro-batches on all ranks add
    up to the loss of the optimizer step.
    """
    samples = TokenBatch(
        logprobs=logprob,
        old_logprobs=old_logprobs.to(logprob.device),
        sample_lengths=torch.from_numpy(micro_batch.response_lengths),
        group_ids=torch.from_numpy(micro_batch.group_ids),
        rewards=torch.zeros(len(micro_batch.sample_lengths)),  # already in the advantages
        is_demo=torch.from_numpy(micro_batch.is_demo),
        entropy=entropy,
        ref_logprobs=None if ref_logprobs is None else torch.from_numpy(ref_logprobs),
    )
    return estimator.loss(
        samples,
        SampleWeights(
            micro_batch.advantages, micro_batch.scales, micro_batch.entropy_scales, micro_batch.kl_scales
        ),
    )
