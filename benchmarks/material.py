"""What the benchmarks of the learner work on: models of random weights, long-tailed rows, plain forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config

from hpt_ray.algorithms import BatchShape, Estimator
from hpt_ray.learner.packing import Packer, WeighedRow, dummy_pack, make_pack
from hpt_ray.learner.weighing import weigh_rows
from hpt_ray.types import Pack, Row

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
    """Log-normal lengths, cut at `limit`: many short answers and a long tail."""

    median: float
    sigma: float
    limit: int

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        lengths = np.exp(np.log(self.median) + self.sigma * random.standard_normal(count))
        return np.clip(lengths, 1, self.limit).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """Questions of `num_rollouts` rollouts with mixed rewards, so that every row counts."""

    num_questions: int
    num_rollouts: int
    prompts: Lengths
    responses: Lengths
    vocabulary: int

    def draw(self, seed: int) -> list[list[Row]]:
        """Question by question; log π_old is that of a uniform policy."""
        random = np.random.default_rng(seed)
        return [self._question(random, group) for group in range(self.num_questions)]

    def _question(self, random: np.random.Generator, group: int) -> list[Row]:
        prompt = int(self.prompts.draw(random, 1)[0])
        return [
            self.row(random, prompt, int(response), group, reward=float(sample % 2))
            for sample, response in enumerate(self.responses.draw(random, self.num_rollouts))
        ]

    def row(self, random: np.random.Generator, prompt: int, response: int, group: int, reward: float) -> Row:
        """A rollout of random tokens."""
        return Row(
            question_id=f"random/{group}",
            token_ids=random.integers(0, self.vocabulary, prompt + response).astype(np.int32),
            prompt_length=prompt,
            logp_old=np.full(response, -np.log(self.vocabulary), np.float32),
            is_demo=False,
            reward=reward,
            group=group,
        )

    @property
    def batch(self) -> BatchShape:
        return BatchShape(self.num_questions, self.num_rollouts, self.responses.limit)


def weighed(estimator: Estimator, rows: Rows, seed: int) -> list[list[WeighedRow]]:
    """Rows as the learner packs them, question by question."""
    return [weigh_rows(estimator, question, rows.batch).rows for question in rows.draw(seed)]


def rounds_of(
    questions: list[list[WeighedRow]], *, num_ranks: int, tokens_per_microbatch: int
) -> list[list[Pack]]:
    """One pack per rank and round, in the order in which a streaming step sends them."""
    dummy = dummy_pack(len(questions[0][0].scales))
    packer = Packer(num_ranks=num_ranks, tokens_per_microbatch=tokens_per_microbatch, dummy=dummy)
    rounds: list[list[Pack]] = []
    for question in questions:
        packer.add(question)
        rounds += packer.full_rounds()
    return [*rounds, *packer.last_rounds()]


def full_logits(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π [R] and entropy [R] (no gradient) by the plain formulas, every logit held in float32."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    log_z = logits.logsumexp(-1)
    logp = logits.gather(-1, targets[:, None]).squeeze(-1) - log_z
    with torch.no_grad():
        entropy = log_z - ((logits - log_z[:, None]).exp() * logits).sum(-1)
    return logp, entropy


def full_pack(num_tokens: int, rows: Rows, num_terms: int, seed: int) -> Pack:
    """Exactly `num_tokens` tokens of such rows (the last takes what is left), advantages ±1 in every term."""
    random = np.random.default_rng(seed)
    items: list[WeighedRow] = []
    left = num_tokens
    while left:
        prompt, response = (int(lengths.draw(random, 1)[0]) for lengths in (rows.prompts, rows.responses))
        if prompt + response + 2 > left:
            prompt = min(prompt, left - 1)
            response = left - prompt
        row = rows.row(random, prompt, response, group=len(items), reward=0.0)
        advantage = np.full((num_terms, 1), 1.0 - 2 * (len(items) % 2), np.float32)
        items.append(WeighedRow(row, advantage, np.full(num_terms, 1 / num_tokens, np.float32)))
        left -= prompt + response
    return make_pack(items)
