"""A micro-batch as the tensors that a model is run on: the whole of it, or a slice where ranks share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hpt_ray.algorithms.batch import on_device
from hpt_ray.learner.attention import NAME as SEGMENTS
from hpt_ray.learner.attention import Segments
from hpt_ray.learner.batch_invariant import NAME as BATCH_INVARIANT
from hpt_ray.learner.batch_invariant import TILE, padded
from hpt_ray.learner.sequence_parallel import ALONE, SequenceRanks
from hpt_ray.types import MicroBatch


@dataclass(frozen=True)
class ScorerInput:
    """A micro-batch as tensors. T tokens, R of them response tokens; of ranks that share them, those of one slice.

    `token_ids`, `position_ids` [1, T]; `before` [R]: the position that predicts each response token;
    `targets` [R]: the response tokens; `temperature` [R]: of the distribution they are scored under.
    `responses`: which these are of the `num_responses` of the micro-batch.
    """

    token_ids: Tensor
    position_ids: Tensor
    before: Tensor
    targets: Tensor
    temperature: Tensor
    segments: Segments
    responses: slice
    num_responses: int

    @classmethod
    def from_micro_batch(
        cls,
        micro_batch: MicroBatch,
        *,
        temperature: float,
        device: torch.device | str,
        ranks: SequenceRanks = ALONE,
    ) -> ScorerInput:
        """Rollouts are scored at the temperature they were sampled at, demonstrations at 1.

        A response token belongs to the slice with the position before it.
        """
        ends, lengths = np.cumsum(micro_batch.sample_lengths), micro_batch.response_lengths
        positions = np.concatenate(
            [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        )
        per_sample = np.where(micro_batch.is_demo, 1.0, temperature).astype(np.float32)
        padding, tokens = ranks.padding(micro_batch.num_tokens), ranks.slice_of(micro_batch.num_tokens)
        token_ids, position_ids = (
            on_device(np.pad(ids, (0, padding))[tokens], device, torch.long)[None]
            for ids in (micro_batch.token_ids, micro_batch.position_ids)
        )
        mine = slice(*np.searchsorted(positions - 1, [tokens.start, tokens.stop]).tolist())
        return cls(
            token_ids=token_ids,
            position_ids=position_ids,
            before=on_device(positions[mine] - 1 - tokens.start, device, torch.long),
            targets=on_device(micro_batch.token_ids[positions[mine]], device, torch.long),
            temperature=on_device(np.repeat(per_sample, lengths)[mine], device, torch.float32),
            segments=Segments.from_lengths(micro_batch.sample_lengths, device, ranks),
            responses=mine,
            num_responses=len(positions),
        )

    def hidden_before(self, model: PreTrainedModel) -> Tensor:
        """`model`'s last hidden state [R, H] at the position before each response token."""
        # The packed kernels of transformers read the samples off the positions; ours is told.
        attention = model.config._attn_implementation
        packed = {"segments": self.segments} if attention in (SEGMENTS, BATCH_INVARIANT) else {}
        token_ids, position_ids = self.token_ids, self.position_ids
        if attention == BATCH_INVARIANT:  # what is added belongs to no sample
            token_ids, position_ids = (padded(ids, TILE, dim=1) for ids in (token_ids, position_ids))
        hidden = model.base_model(
            input_ids=token_ids, position_ids=position_ids, use_cache=False, **packed
        ).last_hidden_state[0]
        return hidden.index_select(0, self.before)

    def of_all(self, mine: Tensor) -> Tensor:
        """Numbers [R] of the whole micro-batch, with the gradient of this slice's. Collective where it is shared."""
        return self.segments.ranks.whole(mine, self.responses, self.num_responses)
