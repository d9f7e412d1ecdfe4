"""Learner ranks that can be looked into, and the room to start them in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import numpy as np

from hpt_ray.algorithms import Estimator
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.meeting import Meeting
from hpt_ray.cluster.runtime import Cluster, ResourceRequest
from hpt_ray.config.schema import ClusterConfig, ModelConfig
from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.base import RankWorker, hf_name
from hpt_ray.learner.packing import WeightedSample, make_micro_batch
from hpt_ray.learner.policy import LearnerSpec, LearnerWorker
from hpt_ray.types import MicroBatch, Sample
from hpt_ray.weight_sync.buckets import TensorMeta

LIMIT_S = 120.0
CPUS = 0.5  # logical, of one actor


def gradient_of(worker: RankWorker) -> dict[str, np.ndarray] | None:
    """The step's gradient, summed over all micro-batches, by parameter name; rank 0. Before `step`. Collective."""
    from deepspeed.utils import safe_get_full_grad

    worker._engine.reduce()
    parameters = worker._engine.module.named_parameters()
    whole = {
        name: safe_get_full_grad(p).float().cpu().numpy().copy() for name, p in parameters if p.requires_grad
    }
    return {hf_name(name): gradient for name, gradient in whole.items()} if worker._rank == 0 else None


class ProbedWorker(LearnerWorker):
    """A rank that keeps the gradient of each step, and takes on another algorithm while it runs."""

    _renamed: Mapping[str, str] = MappingProxyType({})

    def use(self, estimator: Estimator, temperature: float | None = None) -> None:
        self._spec = replace(
            self._spec, estimator=estimator, temperature=temperature or self._spec.temperature
        )

    def rename(self, names: dict[str, str]) -> None:
        """From now on send these weights under other names."""
        self._renamed = names

    def weight_metas(self) -> list[TensorMeta]:
        return [
            replace(meta, name=self._renamed.get(meta.name, meta.name)) for meta in super().weight_metas()
        ]

    def cut_pieces(self, num_bytes: int) -> None:
        """From now on copy the state in pieces of that many bytes."""
        from hpt_ray.learner import deepspeed_state

        deepspeed_state.PIECE_BYTES = num_bytes

    def restart(self, config: LearnerConfig, path: str, dtype: str = "float32") -> None:
        """A fresh model and engine among the ranks that have joined: loading the libraries takes longer
        than all tests. Collective.
        """
        from hpt_ray.learner import deepspeed

        self._engine._engine.destroy()
        self._spec = self._base = replace(
            self._spec, learner=config, model_path=path, model=ModelConfig(path=path, dtype=dtype)
        )
        deepspeed.join_ranks = lambda *_, **__: None
        self.start(Meeting("", 0, b""))

    def step(self, learning_rate: float) -> Any:
        self._gradient = gradient_of(self)
        return super().step(learning_rate)

    def random_number(self) -> float:
        """The next of this rank's."""
        import torch

        return float(torch.rand(()))

    def gradient(self) -> dict[str, np.ndarray] | None:
        """By parameter name; rank 0."""
        return self._gradient

    def parameters(self) -> dict[str, np.ndarray]:
        """Whole, by Hugging Face name. Collective."""
        names = [meta.name for meta in self.weight_metas()]
        tensors = (tensor for _, tensor in self._published(self._engine.full_parameters()))
        return dict(zip(names, (tensor.float().cpu().numpy().copy() for tensor in tensors), strict=True))

    def trained(self) -> dict[str, np.ndarray]:
        """What trains, under its own names. Collective."""
        trains = {name for name, p in self._engine.module.named_parameters() if p.requires_grad}
        whole = ((n, tensor.float().cpu().numpy().copy()) for n, tensor in self._engine.full_parameters())
        return {hf_name(name): tensor for name, tensor in whole if name in trains}


def call(group: ActorGroup, method: str, *arguments: Any) -> list[Any]:
    """Call all actors of a group and wait."""
    return asyncio.run(group.call(method, *arguments, timeout_s=LIMIT_S))


def room_for(**counts: int) -> Cluster:
    """Room in the session's Ray for so many actors of each kind; `release()` ends them."""
    room = Cluster.connect(ClusterConfig())
    needs = [ResourceRequest(kind, count, CPUS, 0.0) for kind, count in counts.items()]
    asyncio.run(room.reserve(needs, timeout_s=LIMIT_S, name=f"tests-{uuid4()}"))
    return room


def start_learners(
    room: Cluster,
    path: Path,
    config: LearnerConfig,
    *,
    temperature: float,
    estimator: Any = None,
) -> ActorGroup:
    """`config.num_ranks` ranks of the real learner, joined, with the model at `path`."""
    spec = LearnerSpec(ModelConfig(path=str(path)), str(path), config, 0, estimator, temperature)
    ranks = range(config.num_ranks)
    learners = room.create("learner", ProbedWorker, [(r, len(ranks), spec, None) for r in ranks])
    call(learners, "start", call(learners, "rendezvous")[0])
    return learners


def micro_batch_of(samples: list[Sample]) -> MicroBatch:
    """The samples as they are, for scoring: their terms count for nothing."""
    nothing = np.zeros((1, 1), np.float32)
    return make_micro_batch([WeightedSample(sample, nothing, nothing[0]) for sample in samples])
