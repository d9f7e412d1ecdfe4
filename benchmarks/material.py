"""What the benchmarks of the learner work on: models of random weights, long-tailed samples, plain forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config

from hpt_ray.algorithms import BatchShape, Estimator
from hpt_ray.learner.packing import Packer, WeightedSample, dummy_micro_batch, make_micro_batch
from hpt_ray.learner.scoring import weight_samples
from hpt_ray.types import MicroBatch, Sample

VOCABULARY = 151_936  # of Qwen2


@dataclass(frozen=True)
class ModelShape:
    """A Qwen2 of this shape; heads of `hidden` / `num_heads` dimensions."""

    hidden: int
    mlp: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocabulary: int

    def config(self) -> Qwen2Config:
        """Tied embeddings, as in the small sizes of Qwen2."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            max_position_embeddings=1 << 15,
            tie_word_embeddings=True,
            use_cache=False,
            architectures=["Qwen2ForCausalLM"],
        )

    def save(self, folder: Path) -> Path:
        """Only config.json: `model.random_init` draws the weights."""
        self.config().save_pretrained(folder)
        return folder


QWEN2_05B = ModelShape(896, 4864, 24, 14, 2, VOCABULARY)


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths, cut at `limit`: many short responses and a long tail."""

    median: float
    sigma: float
    limit: int

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        lengths = np.exp(np.log(self.median) + self.sigma * random.standard_normal(count))
        return np.clip(lengths, 1, self.limit).astype(np.int64)


@dataclass(frozen=True)
class SampleShape:
    """Prompts of `num_rollouts` rollouts with mixed rewards, so that every sample counts."""

    num_prompts: int
    num_rollouts: int
    prompts: Lengths
    responses: Lengths
    vocabulary: int

    def draw(self, seed: int) -> list[list[Sample]]:
        """Prompt by prompt; log π_old is that of a uniform policy."""
        random = np.random.default_rng(seed)
        return [self._prompt(random, group) for group in range(self.num_prompts)]

    def _prompt(self, random: np.random.Generator, group: int) -> list[Sample]:
        prompt = int(self.prompts.draw(random, 1)[0])
        return [
            self.sample(random, prompt, int(response), group, reward=float(sample % 2))
            for sample, response in enumerate(self.responses.draw(random, self.num_rollouts))
        ]

    def sample(
        self, random: np.random.Generator, prompt: int, response: int, group: int, reward: float
    ) -> Sample:
        """A rollout of random tokens."""
        return Sample(
            prompt_id=f"random/{group}",
            token_ids=random.integers(0, self.vocabulary, prompt + response).astype(np.int32),
            prompt_length=prompt,
            old_logprobs=np.full(response, -np.log(self.vocabulary), np.float32),
            is_demo=False,
            reward=reward,
            group=group,
        )

    @property
    def batch(self) -> BatchShape:
        return BatchShape(self.num_prompts, self.num_rollouts, self.responses.limit)


def weighed(estimator: Estimator, samples: SampleShape, seed: int) -> list[list[WeightedSample]]:
    """Samples as the learner micro-batches them, prompt by prompt."""
    return [weight_samples(estimator, prompt, samples.batch).samples for prompt in samples.draw(seed)]


def rounds_of(
    prompts: list[list[WeightedSample]], *, num_ranks: int, max_tokens_per_micro_batch: int
) -> list[list[MicroBatch]]:
    """One micro-batch per rank and round, in the order in which a streaming step sends them."""
    dummy = dummy_micro_batch(len(prompts[0][0].scales))
    packer = Packer(num_ranks=num_ranks, max_tokens_per_micro_batch=max_tokens_per_micro_batch, dummy=dummy)
    rounds: list[list[MicroBatch]] = []
    for prompt in prompts:
        packer.add(prompt)
        rounds += packer.full_rounds()
    return [*rounds, *packer.last_rounds()]


def full_logits(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π [R] and entropy [R] (no gradient) by the plain formulas, every logit held in float32."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    log_z = logits.logsumexp(-1)
    logprob = logits.gather(-1, targets[:, None]).squeeze(-1) - log_z
    with torch.no_grad():
        entropy = log_z - ((logits - log_z[:, None]).exp() * logits).sum(-1)
    return logprob, entropy


def full_micro_batch(num_tokens: int, samples: SampleShape, num_terms: int, seed: int) -> MicroBatch:
    """Exactly `num_tokens` tokens of such samples (the last takes what is left), advantages ±1 in every term."""
    random = np.random.default_rng(seed)
    items: list[WeightedSample] = []
    left = num_tokens
    while left:
        prompt, response = (
            int(lengths.draw(random, 1)[0]) for lengths in (samples.prompts, samples.responses)
        )
        if prompt + response + 2 > left:
            prompt = min(prompt, left - 1)
            response = left - prompt
        sample = samples.sample(random, prompt, response, group=len(items), reward=0.0)
        advantage = np.full((num_terms, 1), 1.0 - 2 * (len(items) % 2), np.float32)
        items.append(WeightedSample(sample, advantage, np.full(num_terms, 1 / num_tokens, np.float32)))
        left -= prompt + response
    return make_micro_batch(items)
