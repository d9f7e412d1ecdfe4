"""The policy in this one process: it samples, and it scores with gradient, by the learner's model and its head.

One process is enough for what the meter is for, models whose gradient fits on one device. Sampling is that of
transformers, a prompt at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from hpt_ray.config.schema import Config
from hpt_ray.data.template import Template
from hpt_ray.learner.logprobs import TokenScorer, score
from hpt_ray.learner.model import load_policy
from hpt_ray.learner.packing import WeightedSample, make_micro_batch
from hpt_ray.learner.scorer_input import ScorerInput
from hpt_ray.types import FinishReason, Prompt, Rollout, Sample

MOST_ROWS = 256  # responses that are sampled together
NO_PREFIX = np.zeros(0, np.int32)
NO_TERMS = np.zeros((0, 1)), np.zeros(0)


class Policy:
    """A model at a path, as a run's configuration loads it. On a GPU where there is one."""

    def __init__(self, config: Config, path: str, template: Template):
        self._config, self._template = config, template
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_policy(config.model, path, seed=config.run.seed).eval().to(self._device)
        # Nothing of a model's own habits, such as penalties.
        self._model.generation_config = GenerationConfig()
        self._scorer = TokenScorer(self._model)
        self.parameters: dict[str, Tensor] = dict(self._model.named_parameters())

    def score(self, samples: Sequence[Sample], entropy_grad: bool) -> tuple[Tensor, Tensor]:
        """log π_θ and entropy of all response tokens, with gradient."""
        return self._scorer(self._packed(samples), entropy_grad)

    def _packed(self, samples: Sequence[Sample]) -> ScorerInput:
        micro_batch = make_micro_batch([WeightedSample(sample, *NO_TERMS) for sample in samples])
        temperature = self._config.rollout.temperature
        return ScorerInput.from_micro_batch(micro_batch, temperature=temperature, device=self._device)

    def sample(self, prompt: Prompt, count: int, seed: str, prefix: np.ndarray = NO_PREFIX) -> list[Rollout]:
        """`count` responses with the policy's log-probs; the same ones for the same seed. They begin with `prefix`."""
        digest = hashlib.blake2b(
            f"{self._config.run.seed} {seed} {prompt.id}".encode(), digest_size=7
        ).digest()
        torch.manual_seed(int.from_bytes(digest, "big"))
        rollouts: list[Rollout] = []
        while len(rollouts) < count:
            rows = min(MOST_ROWS, count - len(rollouts))
            rollouts += self._generate(prompt, prefix, rows, len(rollouts))
        return rollouts

    def _generate(self, prompt: Prompt, prefix: np.ndarray, rows: int, first: int) -> list[Rollout]:
        rollout, stops = self._config.rollout, list(self._template.stop_token_ids)
        before = np.concatenate([prompt.token_ids, prefix])
        ids = torch.from_numpy(np.tile(before, (rows, 1))).long().to(self._device)
        attention = self._model.config._attn_implementation
        self._model.config._attn_implementation = "sdpa"  # that of packed samples keeps no cache
        try:
            with torch.no_grad():
                found = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=rollout.temperature,
                    top_p=rollout.top_p,
                    top_k=max(rollout.top_k, 0),
                    max_new_tokens=self._config.data.max_response_tokens - len(prefix),
                    eos_token_id=stops,
                    pad_token_id=stops[0],
                )
        finally:
            self._model.config._attn_implementation = attention
        responses = [_until_stop(row, stops) for row in found[:, ids.shape[1] :].cpu().numpy()]
        samples = [
            Sample(
                prompt.id,
                np.concatenate([before, response]).astype(np.int32),
                len(before),
                np.zeros(len(response), np.float32),
                False,
                0.0,
                0,
            )
            for response in responses
        ]
        logprobs, _ = score(self._scorer, self._packed(samples))
        parts = np.split(logprobs, np.cumsum([len(response) for response in responses])[:-1])
        unknown = np.full(len(prefix), np.nan, np.float32)
        wholes = [np.concatenate([prefix, response]).astype(np.int32) for response in responses]
        return [
            Rollout(
                prompt.id,
                first + i,
                whole,
                np.concatenate([unknown, part]),
                FinishReason.STOP if whole[-1] in stops else FinishReason.LENGTH,
                0,
                self._template.decode(whole),
                prefix_length=len(prefix),
            )
            for i, (whole, part) in enumerate(zip(wholes, parts, strict=True))
        ]


def _until_stop(row: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """What comes before the padding, with the token that ends the response."""
    (ends,) = np.isin(row, stops).nonzero()
    return row[: ends[0] + 1] if len(ends) else row
