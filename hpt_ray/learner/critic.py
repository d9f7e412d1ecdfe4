"""The critic worker: a Ray actor that is one DeepSpeed rank of PPO's value model.

In: micro-batches, and returns to learn on them. Out: values, forward only. Where the returns come from and what a
sample weighs is decided elsewhere; the value model itself stands in `model.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpt_ray.config.schema import Config
from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.base import RankSpec, RankWorker
from hpt_ray.types import MicroBatch, ValueTargets


def optimizer_of(config: Config) -> LearnerConfig:
    """The learner's settings with what is the critic's own."""
    critic = config.critic
    return replace(
        config.learner,
        num_ranks=critic.num_ranks,
        num_cpus=critic.num_cpus,
        num_gpus=critic.num_gpus,
        learning_rate=critic.learning_rate,
        base_pull=0.0,  # its head has no base
    )


@dataclass(frozen=True)
class CriticSpec(RankSpec):
    """`learner` comes from `optimizer_of`."""

    value_clip: float


class CriticWorker(RankWorker[CriticSpec]):
    """One rank of the critic."""

    def _module(self) -> Any:
        from hpt_ray.learner.model import ValueScorer, load_critic

        return ValueScorer(load_critic(self._spec.model, self._spec.model_path, seed=self._spec.seed))

    def values(self, micro_batch: MicroBatch) -> np.ndarray:
        """V [R] float32 of the micro-batch's response tokens, forward only. Collective under ZeRO 3."""
        import torch

        with self._span("score"), torch.no_grad():
            return self._forward(micro_batch).cpu().numpy()

    def accumulate(self, micro_batch: MicroBatch, targets: ValueTargets) -> None:
        """Forward and backward of Σ scale · clipped value loss of one micro-batch. Collective (equal counts)."""
        from hpt_ray.algorithms import clipped_value_loss
        from hpt_ray.algorithms.batch import on_device

        with self._span("backward"):
            values = self._forward(micro_batch)
            per_token = np.repeat(targets.scales, micro_batch.response_lengths)
            old, returns, scales = (
                on_device(array, values.device) for array in (targets.values, targets.returns, per_token)
            )
            loss = clipped_value_loss(values, old, returns, self._spec.value_clip)
            self._engine.backward((scales * loss).sum())
            if not (micro_batch.is_dummy or self._sequence.rank):
                self._at_step(self._count, loss.detach().sum(), loss.numel())
                self._report.num_tokens += micro_batch.num_tokens

    def _count(self, loss: Any, num_tokens: int) -> None:
        self._report.count("critic/value_loss", float(loss), num_tokens)

    def _forward(self, micro_batch: MicroBatch) -> Any:
        return self._engine.forward(self._input(micro_batch, temperature=1.0))
