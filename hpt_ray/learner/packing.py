"""Samples to micro-batches, micro-batches to ranks, and there to their share of the step's loss.

A micro-batch holds at most `max_tokens_per_micro_batch` tokens of whole samples, laid end to end. Micro-batches
leave in rounds of one per rank (or per `learner.sequence_parallel` ranks, which share it), because some ZeRO stages
run their forward passes in lockstep; a round that cannot be filled is completed with dummies that add exactly
nothing. Since every sample already carries its share of 1/Z, how samples fall into micro-batches, rounds and ranks
does not change the gradient.
`micro_batch_loss` is the only place where micro-batches meet the estimator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpt_ray.algorithms import Estimator, SampleWeights, TokenBatch
from hpt_ray.algorithms.batch import on_device
from hpt_ray.types import MicroBatch, Sample


@dataclass(slots=True)
class WeightedSample:
    """A sample and what it weighs: `advantages` [K, L] (or [K, 1] for all its tokens), `scales` [K]."""

    sample: Sample
    advantages: np.ndarray
    scales: np.ndarray
    entropy_scale: float = 0.0
    kl_scale: float = 0.0

    @property
    def num_tokens(self) -> int:
        return len(self.sample.token_ids)


def make_micro_batch(samples: list[WeightedSample], *, is_dummy: bool = False) -> MicroBatch:
    """Lay `samples` end to end."""
    sample_lengths = np.array([s.num_tokens for s in samples], np.int32)
    responses = np.array([s.sample.response_length for s in samples], np.int32)
    per_token = [
        np.broadcast_to(s.advantages, (s.advantages.shape[0], s.sample.response_length)).astype(np.float32)
        for s in samples
    ]
    return MicroBatch(
        token_ids=np.concatenate([s.sample.token_ids for s in samples]),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in sample_lengths]),
        sample_lengths=sample_lengths,
        response_lengths=responses,
        old_logprobs=np.concatenate([s.sample.old_logprobs for s in samples]),
        advantages=np.concatenate(per_token, axis=1),
        scales=np.stack([s.scales for s in samples], axis=1).astype(np.float32),
        entropy_scales=np.array([s.entropy_scale for s in samples], np.float32),
        kl_scales=np.array([s.kl_scale for s in samples], np.float32),
        group_ids=np.array([s.sample.group for s in samples], np.int32),
        is_demo=np.array([s.sample.is_demo for s in samples]),
        is_rehearsal=np.array([s.sample.is_rehearsal for s in samples]),
        is_dummy=is_dummy,
    )


def dummy_micro_batch(num_terms: int) -> MicroBatch:
    """The smallest micro-batch for K terms: one sample of two tokens whose scales are zero."""
    sample = Sample("dummy", np.zeros(2, np.int32), 1, np.zeros(1, np.float32), False, 0.0, 0)
    nothing = WeightedSample(sample, np.zeros((num_terms, 1), np.float32), np.zeros(num_terms, np.float32))
    return make_micro_batch([nothing], is_dummy=True)


class Packer:
    """Collects weighed samples and gives them out as rounds of one micro-batch per rank.

    `sequence_parallel` ranks in a row share theirs: a round has the same one for each of them.
    """

    def __init__(
        self,
        *,
        num_ranks: int,
        max_tokens_per_micro_batch: int,
        dummy: MicroBatch,
        sequence_parallel: int = 1,
    ):
        self._num_bins, self._sequence_parallel = num_ranks // sequence_parallel, sequence_parallel
        self._budget = max_tokens_per_micro_batch
        self._dummy = dummy
        self._waiting: list[WeightedSample] = []
        self._waiting_tokens = 0
        self.rounds_out = 0

    def add(self, samples: list[WeightedSample]) -> None:
        for sample in samples:
            if sample.num_tokens > self._budget:
                raise ValueError(
                    f"sample of {sample.num_tokens} tokens ({sample.sample.prompt_id}) in micro-batches of "
                    f"{self._budget}"
                )
        self._waiting += samples
        self._waiting_tokens += sum(sample.num_tokens for sample in samples)

    def full_rounds(self) -> Iterator[list[MicroBatch]]:
        """Rounds that the waiting samples fill."""
        while self._waiting_tokens >= self._num_bins * self._budget:
            yield self._round()

    def last_rounds(self) -> Iterator[list[MicroBatch]]:
        """Everything that still waits; at least one round since the last call, dummies if need be."""
        while self._waiting or not self.rounds_out:
            yield self._round()
        self.rounds_out = 0

    def _round(self) -> list[MicroBatch]:
        """Micro-batches from the longest waiting samples first, each to the one with fewest tokens."""
        order = sorted(range(len(self._waiting)), key=lambda i: (-self._waiting[i].num_tokens, i))
        bins: list[list[WeightedSample]] = [[] for _ in range(self._num_bins)]
        loads = [0] * self._num_bins
        taken = set()
        for i in order:
            least = min(range(self._num_bins), key=loads.__getitem__)
            size = self._waiting[i].num_tokens
            if loads[least] + size <= self._budget:
                bins[least].append(self._waiting[i])
                loads[least] += size
                taken.add(i)
        self._waiting = [sample for i, sample in enumerate(self._waiting) if i not in taken]
        self._waiting_tokens -= sum(loads)
        self.rounds_out += 1
        made = [make_micro_batch(samples) if samples else self._dummy for samples in bins]
        return [micro_batch for micro_batch in made for _ in range(self._sequence_parallel)]


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
    not read on demonstrations, `ref_logprobs` [R] the frozen policy's. The losses of all micro-batches on all
    ranks add up to the loss of the optimizer step.
    """
    samples = TokenBatch(
        logprobs=logprob,
        old_logprobs=on_device(old_logprobs, logprob.device),
        sample_lengths=torch.from_numpy(micro_batch.response_lengths),
        group_ids=torch.from_numpy(micro_batch.group_ids),
        rewards=torch.zeros(len(micro_batch.sample_lengths)),  # already in the advantages
        is_demo=torch.from_numpy(micro_batch.is_demo),
        is_rehearsal=torch.from_numpy(micro_batch.is_rehearsal),
        entropy=entropy,
        ref_logprobs=None if ref_logprobs is None else on_device(ref_logprobs, logprob.device),
    )
    return estimator.loss(
        samples,
        SampleWeights(
            micro_batch.advantages, micro_batch.scales, micro_batch.entropy_scales, micro_batch.kl_scales
        ),
    )
