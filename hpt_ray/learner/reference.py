"""The frozen policy that scores micro-batches, forward only: an actor that holds it, and who is asked for scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.process import prepare_process
from hpt_ray.config.schema import ModelConfig
from hpt_ray.config.training import ReferenceConfig
from hpt_ray.types import MicroBatch


@dataclass(frozen=True)
class ReferenceSpec:
    """What a scorer is made from. `temperature` is that of the rollouts, as in the learner."""

    model: ModelConfig
    model_path: str
    reference: ReferenceConfig
    temperature: float
    seed: int


class ReferenceWorker:
    """Scores whole micro-batches; several workers share the micro-batches between them."""

    def __init__(self, spec: ReferenceSpec, log_file: str | None):
        prepare_process(threads=spec.reference.num_cpus, log_file=log_file)
        self._spec = spec
        self._scorer: Any = None

    def start(self) -> None:
        """Load the model, once."""
        if self._scorer is not None:
            return
        import torch

        from hpt_ray.learner.logprobs import TokenScorer
        from hpt_ray.learner.model import load_policy

        torch.set_num_threads(max(1, int(self._spec.reference.num_cpus)))
        model = load_policy(self._spec.model, self._spec.model_path, seed=self._spec.seed).eval()
        self._device = "cuda" if self._spec.reference.num_gpus > 0 else "cpu"
        self._scorer = TokenScorer(model).to(self._device)

    def logprobs(self, micro_batch: MicroBatch) -> tuple[np.ndarray, np.ndarray]:
        """log π_ref and its entropy [R] on the micro-batch's response tokens, float32."""
        from hpt_ray.learner.logprobs import score
        from hpt_ray.learner.scorer_input import ScorerInput

        self.start()  # a scorer that Ray has started again is asked at once
        temperature = self._spec.temperature
        samples = ScorerInput.from_micro_batch(micro_batch, temperature=temperature, device=self._device)
        return score(self._scorer, samples)


class ReferenceScores:
    """Who is asked: workers of its own, in turns, or all ranks of a learner together, with their adapters off.

    Of learner ranks `sequence_parallel` in a row share a micro-batch, which a worker scores for all of them.
    """

    def __init__(self, actors: ActorGroup, *, of_learner: bool, sequence_parallel: int = 1):
        self._actors, self._of_learner, self._sequence_parallel = actors, of_learner, sequence_parallel
        self._turn = itertools.count()

    @property
    def num_together(self) -> int:
        """Micro-batches of one call."""
        return len(self._actors) if self._of_learner else 1

    def send(self, micro_batches: Sequence[MicroBatch]) -> tuple[list[Any], list[str]]:
        """References to log π_ref and entropy for each rank's micro-batch, and the names of those who score it."""
        if self._of_learner:
            arguments = [(micro_batch,) for micro_batch in micro_batches]
            return self._actors.send_each("reference_logprobs", arguments), self._actors.names
        scores, names = [], []
        for micro_batch in micro_batches[:: self._sequence_parallel]:
            turn = next(self._turn) % len(self._actors)
            scores += [self._actors.actors[turn].logprobs.remote(micro_batch)] * self._sequence_parallel
            names += [self._actors.names[turn]] * self._sequence_parallel
        return scores, names
