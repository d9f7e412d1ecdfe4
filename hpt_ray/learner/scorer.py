"""Log-probs and entropies of the response tokens of packed samples, from hidden states.

The output layer runs on response positions only, and the full logits of a micro-batch never exist at once: a
plain linear layer is fused with the softmax (`logprob.py`); any other is called on chunks of samples, each
of which is run again in the backward pass where there is more than one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hpt_ray.errors import UserError
from hpt_ray.learner.attention import NAME as SEGMENTS
from hpt_ray.learner.attention import Segments
from hpt_ray.learner.logprobs import LogProbHead
from hpt_ray.types import MicroBatch

# Keys of model configurations whose logits are more than the output layer's.
OTHER_SCALES = ("logit_scale", "logits_scaling")
CHUNK_LOGITS = 1 << 26  # logits of one chunk of any other layer than a linear one: 256 MiB in float32


@dataclass(frozen=True)
class ScorerInput:
    """A micro-batch as tensors. T tokens, R of them response tokens.

    `token_ids`, `position_ids` [1, T]; `before` [R]: the position that predicts each response token;
    `targets` [R]: the response tokens; `temperature` [R]: of the distribution they are scored under.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    before: torch.Tensor
    targets: torch.Tensor
    temperature: torch.Tensor
    segments: Segments

    @classmethod
    def from_micro_batch(
        cls, micro_batch: MicroBatch, *, temperature: float, device: torch.device | str
    ) -> ScorerInput:
        """Rollouts are scored at the temperature they were sampled at, demonstrations at 1."""
        ends = np.cumsum(micro_batch.sample_lengths)
        starts = np.repeat(ends - micro_batch.response_lengths, micro_batch.response_lengths)
        within = np.arange(micro_batch.response_lengths.sum()) - np.repeat(
            np.cumsum(micro_batch.response_lengths) - micro_batch.response_lengths,
            micro_batch.response_lengths,
        )
        positions = starts + within
        per_sample = np.where(micro_batch.is_demo, 1.0, temperature).astype(np.float32)

        def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)

        return cls(
            token_ids=tensor(micro_batch.token_ids, torch.long)[None],
            position_ids=tensor(micro_batch.position_ids, torch.long)[None],
            before=tensor(positions - 1, torch.long),
            targets=tensor(micro_batch.token_ids[positions], torch.long),
            temperature=tensor(np.repeat(per_sample, micro_batch.response_lengths), torch.float32),
            segments=Segments.from_lengths(micro_batch.sample_lengths, device),
        )


class TokenScorer(torch.nn.Module):
    """A causal language model seen as: packed samples → (log π, entropy) of their response tokens."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        for name in OTHER_SCALES:
            if getattr(model.config, name, None) not in (None, 1.0):
                raise UserError(
                    f"model.path: {model.config.model_type} scales its logits ({name}), which the learner "
                    "does not do. Use a model of another architecture."
                )
        self.model = model
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        layer = model.get_output_embeddings()
        # A subclass of the linear layer may compute anything.
        self.head = LogProbHead(layer, self._softcap) if type(layer) is torch.nn.Linear else None

    def forward(self, samples: ScorerInput, entropy_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """log π_θ [R] and entropy of π_θ [R], float32; the entropy is detached unless asked for."""
        # The packed kernels of transformers read the samples off the positions; ours is told.
        packed = {"segments": samples.segments} if self.model.config._attn_implementation == SEGMENTS else {}
        hidden = self.model.base_model(
            input_ids=samples.token_ids, position_ids=samples.position_ids, use_cache=False, **packed
        ).last_hidden_state[0]
        score = self._score_in_chunks if self.head is None else self.head
        logprob, entropy = score(
            hidden.index_select(0, samples.before), samples.targets, samples.temperature, entropy_grad
        )
        return logprob.float(), entropy.float()

    def _score_in_chunks(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = max(1, CHUNK_LOGITS // self.model.config.get_text_config().vocab_size)
        chunks = list(zip(hidden.split(size), targets.split(size), temperature.split(size), strict=True))
        recompute = len(chunks) > 1 and torch.is_grad_enabled()
        parts = [
            checkpoint(self._score, *chunk, entropy_grad, use_reentrant=False)
            if recompute
            else self._score(*chunk, entropy_grad)
            for chunk in chunks
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _score(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model.get_output_embeddings()(hidden).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        logits = logits / temperature[:, None]
        log_z = logits.logsumexp(-1)
        logprob = logits.gather(-1, targets[:, None]).squeeze(-1) - log_z
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            base, z = (logits, log_z) if entropy_grad else (logits.detach(), log_z.detach())
            entropy = z - ((base - z[:, None]).exp() * base).sum(-1)
        return logprob, entropy
