"""The learner's ranks beside one process of plain PyTorch; both take the same steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain import PlainLearner, distance, norm
from probe import LIMIT_S, call, room_for, start_learners

from hpt_ray.algorithms import BatchShape, Estimator, make_estimator
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.types import Sample, UpdateResult

TEMPERATURE = 0.7
RATE = 1e-3
N, SAMPLES, C = 6, 4, 24
HPT, HPT_BATCH = make_estimator("hpt"), BatchShape(N, SAMPLES, C)

# What the gate let through of each prompt: rewards of its rollouts, and whether its demonstration.
MIXED = [
    ((1, 0, 0, 1), False),
    ((), True),
    ((0, 1, 0, 0), False),
    ((), True),
    ((1, 1, 1, 1), False),
    ((), True),
]
DEMONSTRATIONS = [((), True)] * 4

# Stage and whether the optimizer's state is offloaded.
ZERO = [(0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]


class Pair:
    """The learner and its plain counterpart."""

    def __init__(self, ranks: ActorGroup, plain: PlainLearner, sequence_parallel: int):
        self.ranks, self.plain, self.sequence_parallel = ranks, plain, sequence_parallel

    def step(
        self,
        prompts: list[list[Sample]],
        loss: Callable[[PlainLearner, list[Sample]], torch.Tensor],
        *,
        estimator: Estimator = HPT,
        batch: BatchShape = HPT_BATCH,
        max_tokens_per_micro_batch: int = 96,
        rate: float = RATE,
        reference: ActorGroup | None = None,
        rehearsal: Sequence[Sample] = (),
    ) -> tuple[UpdateResult, dict[str, np.ndarray]]:
        """One step on both sides; asserts that they agree. The learner's result and gradient."""
        before = call(self.ranks, "trained")[0]
        self.plain.set_parameters(before)
        samples = [sample for prompt in prompts for sample in prompt]
        expected, expected_norm = self.plain.gradient(loss(self.plain, samples))
        self.plain.step(rate)
        expected_update = difference(self.plain.parameters(), before)

        result = self.learn(
            prompts,
            estimator=estimator,
            batch=batch,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            rate=rate,
            reference=reference,
            rehearsal=rehearsal,
        )
        gradient = call(self.ranks, "gradient")[0]
        update = difference(call(self.ranks, "trained")[0], before)

        assert all(np.isfinite(g).all() for g in gradient.values())
        assert distance(gradient, expected) <= 1e-5 * expected_norm
        assert result.metrics["optim/grad_norm"] == pytest.approx(expected_norm, rel=1e-5, abs=0)
        assert distance(update, expected_update) <= 1e-3 * norm(expected_update)
        return result, gradient

    def learn(
        self,
        prompts: list[list[Sample]],
        *,
        estimator: Estimator = HPT,
        batch: BatchShape = HPT_BATCH,
        max_tokens_per_micro_batch: int = 96,
        rate: float = RATE,
        reference: ActorGroup | None = None,
        rehearsal: Sequence[Sample] = (),
    ) -> UpdateResult:
        """One step of the learner alone, as the driver takes it."""
        learner = self.group(estimator, batch, max_tokens_per_micro_batch, reference)

        async def update() -> UpdateResult:
            for prompt in prompts:
                learner.add(prompt)
            learner.rehearse([*rehearsal])
            return await learner.finish(rate)

        return asyncio.run(update())

    def group(
        self,
        estimator: Estimator = HPT,
        batch: BatchShape = HPT_BATCH,
        max_tokens_per_micro_batch: int = 96,
        reference: ActorGroup | None = None,
    ) -> LearnerGroup:
        """The driver's side of the learner."""
        call(self.ranks, "use", estimator)
        return LearnerGroup(
            self.ranks,
            estimator,
            batch=batch,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            timeout_s=LIMIT_S,
            reference=reference,
            sequence_parallel=self.sequence_parallel,
        )


def difference(after: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: after[name] - before[name] for name in before}


def hpt_loss(plain: PlainLearner, samples: Sequence[Sample]) -> torch.Tensor:
    """HPT by hand: −Σ ρ (R − mean)/(N n C) on rollouts, −Σ mean log π / N on demonstrations."""
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        logprob, _ = plain.score(sample)
        if sample.is_demo:
            total = total - logprob.mean() / N
        else:
            rewards = [other.reward for other in samples if other.group == sample.group and not other.is_demo]
            ratio = (logprob - torch.from_numpy(sample.old_logprobs)).exp()
            total = total - ratio.sum() * (sample.reward - np.mean(rewards)) / (N * SAMPLES * C)
    return total


@contextmanager
def starting(tiny_model: Callable[[str, bool], Path]) -> Iterator[Callable[..., Pair]]:
    """`start(num_ranks, stage, …)`: a new pair; processes are used again for the same number of ranks."""
    running: dict[tuple[int, str], tuple[Cluster, ActorGroup]] = {}

    def make(
        num_ranks: int,
        zero_stage: int,
        *,
        architecture: str = "qwen2",
        tied: bool = True,
        processes: str = "first",
        dtype: str = "float32",
        **learner: Any,
    ) -> Pair:
        path = tiny_model(architecture, tied)
        # The clip bites in most steps; the weight decay is large enough to be seen.
        options = {"max_grad_norm": 0.5, "weight_decay": 0.1, **learner}
        config = LearnerConfig(num_ranks=num_ranks, zero_stage=zero_stage, **options)
        is_new = (num_ranks, processes) not in running
        if is_new:
            room = room_for(learner=num_ranks)
            ranks = start_learners(room, path, config, temperature=TEMPERATURE)
            running[num_ranks, processes] = room, ranks
        ranks = running[num_ranks, processes][1]
        if not is_new or dtype != "float32":
            call(ranks, "restart", config, str(path), dtype)
        return Pair(ranks, PlainLearner(path, config, TEMPERATURE), config.sequence_parallel)

    try:
        yield make
    finally:
        for room, _ in running.values():
            room.release()
