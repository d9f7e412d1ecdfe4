"""Learner ranks and vLLM engines with the weight sync between them, and rollouts drawn to compare the two."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
from plain import VOCABULARY
from probe import CPUS, LIMIT_S, ProbedWorker, call, micro_batch_of, room_for

from hpt_ray.algorithms import BatchShape, make_estimator
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.config.schema import ModelConfig, RolloutConfig, WeightSyncConfig
from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.learner.policy import LearnerSpec
from hpt_ray.rollout.engine import EngineSpec
from hpt_ray.rollout.requests import GenerateRequest, Sampling, request_for
from hpt_ray.rollout.worker import RolloutWorker
from hpt_ray.types import Rollout, Sample
from hpt_ray.weight_sync.transaction import WeightSync

MAX_TOKENS, SAMPLES = 16, 4
# Two prompts that fill blocks of vLLM's prefix cache (32 tokens), and a short one.
PROMPTS = {
    f"q/{length}": np.random.default_rng(length).integers(3, VOCABULARY, length).astype(np.int32)
    for length in (40, 70, 3)
}
SFT = make_estimator("sft")


class Tap:
    """One worker's only stream of answers."""

    def __init__(self, worker: Any):
        self._worker = worker
        self._stream = worker.rollouts.options(num_returns="streaming").remote()

    def draw(self, requests: list[GenerateRequest], sampling: Sampling) -> list[Rollout]:
        ray.get(self._worker.submit.remote(requests, sampling), timeout=LIMIT_S)
        missing = sum(len(request.samples) for request in requests)
        rollouts: list[Rollout] = []
        while len(rollouts) < missing:
            rollouts += ray.get(next(self._stream), timeout=LIMIT_S)
        return rollouts


@dataclass
class Wired:
    """Learner ranks and rollout workers with the path between them, as the topology makes it."""

    learners: ActorGroup
    workers: ActorGroup
    bucket_mb: float
    make_worker: Callable[[int], Any]
    tensor_parallel: int = 1
    backend: str = "gloo"
    taps: dict[Any, Tap] = field(default_factory=dict)

    def sync(self, *, timeout_s: float = LIMIT_S, keep_committed: bool = False) -> WeightSync:
        config = WeightSyncConfig(bucket_mb=self.bucket_mb, timeout_s=timeout_s)  # type: ignore[arg-type]
        return WeightSync(
            self.learners,
            config,
            self.backend,
            workers_per_engine=self.tensor_parallel,
            keep_committed=keep_committed,
        )

    def rollouts(
        self, worker: int, temperature: float, prompts: Collection[str] = PROMPTS.keys()
    ) -> list[Rollout]:
        """Fresh rollouts of one worker, of these of `PROMPTS`, drawn together."""
        sampling = Sampling(
            temperature=temperature, top_p=1.0, top_k=-1, max_tokens=MAX_TOKENS, stop_token_ids=(2,)
        )
        requests = [
            request_for(key, prompt, num_samples=SAMPLES, run_seed=0, step=0)
            for key, prompt in PROMPTS.items()
            if key in prompts
        ]
        actor = self.workers.actors[worker]
        if actor not in self.taps:
            self.taps[actor] = Tap(actor)
        return self.taps[actor].draw(requests, sampling)

    def gap(self, version: int, temperature: float, workers: list[int] | None = None) -> float:
        """The largest |log π(vLLM) − log π(learner)| over fresh rollouts of these workers, or of all."""
        call(self.learners, "use", SFT, temperature)
        gaps = []
        for worker in range(len(self.workers)) if workers is None else workers:
            rollouts = self.rollouts(worker, temperature)
            assert len(rollouts) == SAMPLES * len(PROMPTS)
            assert {rollout.weight_version for rollout in rollouts} == {version}
            micro_batch = micro_batch_of([sample_of(rollout, is_demo=False) for rollout in rollouts])
            logprob, _ = call(self.learners, "logprobs", micro_batch)[0]
            gaps.append(np.abs(logprob - micro_batch.old_logprobs).max())
        return float(max(gaps))

    def train(self) -> None:
        """One large optimizer step."""
        samples = [sample_of(rollout, is_demo=True) for rollout in self.rollouts(0, 1.0)]
        batch = BatchShape(num_prompts=len(samples), num_rollouts=1, max_response_tokens=MAX_TOKENS)

        async def update() -> None:
            learner = LearnerGroup(
                self.learners, SFT, batch=batch, max_tokens_per_micro_batch=256, timeout_s=LIMIT_S
            )
            learner.add(samples)
            await learner.finish(0.02)

        asyncio.run(update())


def sample_of(rollout: Rollout, *, is_demo: bool) -> Sample:
    prompt = PROMPTS[rollout.prompt_id]
    return Sample(
        prompt_id=rollout.prompt_id,
        token_ids=np.concatenate([prompt, rollout.token_ids]),
        prompt_length=len(prompt),
        old_logprobs=rollout.logprobs,
        is_demo=is_demo,
        reward=1.0,
        group=0,
    )


class SlowLearner(ProbedWorker):
    """A rank whose weights can be made to come slowly, with a file that tells how many have come."""

    def slow_down(self, pause_s: float, progress: str) -> None:
        read = type(self._engine).full_parameters.__get__(self._engine)

        def slowly(gather_bytes: int) -> Iterator[Any]:
            for count, item in enumerate(read(gather_bytes)):
                time.sleep(pause_s)
                if self._rank == 0:
                    Path(progress).write_text(f"{count}")
                yield item

        self._engine.full_parameters = slowly

    def pid(self) -> int:
        return os.getpid()


class Engine(RolloutWorker):
    """A worker that says which process it is."""

    async def pid(self) -> int:
        return os.getpid()


def start_wired(
    path: Path,
    *,
    num_ranks: int,
    stage: int,
    num_workers: int,
    bucket_mb: float,
    tensor_parallel: int = 1,
    dtype: str = "float32",
    batch_invariant: bool = False,
    engine_arguments: Mapping[str, Any] = MappingProxyType({}),
    backend: str = "gloo",
) -> Iterator[Wired]:
    """Everything up; its room is given back in the end."""
    model = ModelConfig(path=str(path), dtype=dtype, batch_invariant=batch_invariant)
    rollout = RolloutConfig(
        num_workers=num_workers,
        tensor_parallel=tensor_parallel,
        num_cpus=CPUS,
        kv_cache_gib=0.02,
        max_num_seqs=16,
        engine=dict(engine_arguments),
    )
    engine = EngineSpec(model, str(path), rollout, max_model_len=96, seed=0)
    config = LearnerConfig(num_ranks=num_ranks, zero_stage=stage)
    learner = LearnerSpec(model, str(path), config, 0, SFT, 1.0)
    room = room_for(learner=num_ranks, rollout=num_workers)
    make = room.maker("rollout", Engine, lambda i: (engine, None), max_concurrency=100)
    workers = ActorGroup([f"rollout-{i}" for i in range(num_workers)], [make(i) for i in range(num_workers)])
    ranks = range(num_ranks)
    learners = room.create("learner", SlowLearner, [(rank, num_ranks, learner, None) for rank in ranks])
    start_ranks(learners)
    call(workers, "start")
    yield Wired(learners, workers, bucket_mb, make, tensor_parallel, backend)
    room.release()


def start_ranks(learners: ActorGroup) -> None:
    call(learners, "start", call(learners, "rendezvous")[0])
