"""Learner to vLLM through the real carrier: after a sync both give the same log-probs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest
import ray
from plain import VOCABULARY
from probe import CPUS, LIMIT_S, call, pack_of, room_for, start_learners

from hpt_ray.cluster.groups import ActorGroup
from hpt_ray.config.schema import LearnerConfig, ModelConfig, RolloutConfig, WeightSyncConfig
from hpt_ray.estimators import BatchShape, make_estimator
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.records import Rollout, Row
from hpt_ray.rollout.engine import EngineSpec
from hpt_ray.rollout.pool import RolloutPool
from hpt_ray.rollout.requests import Sampling, request_for
from hpt_ray.rollout.worker import RolloutWorker
from hpt_ray.weight_sync.transaction import WeightSync

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

MAX_TOKENS, SAMPLES = 16, 4
# Two prompts that fill blocks of vLLM's prefix cache (32 tokens), and a short one.
PROMPTS = {
    f"q/{length}": np.random.default_rng(length).integers(3, VOCABULARY, length).astype(np.int32)
    for length in (40, 70, 3)
}
SFT = make_estimator("sft")


@dataclass
class Wired:
    """Learner ranks and rollout workers with the path between them, as the topology makes it."""

    learners: ActorGroup
    workers: ActorGroup
    bucket_mb: float

    def connect(self) -> WeightSync:
        config = WeightSyncConfig(bucket_mb=self.bucket_mb, timeout_s=LIMIT_S)
        sync = WeightSync(self.learners, self.workers, config, "gloo")
        host, port = call(self.learners, "rendezvous")[0]
        asyncio.run(sync.connect(host, port, workers_per_engine=1))
        return sync

    def rollouts(self, worker: int, temperature: float) -> list[Rollout]:
        """Fresh rollouts of one worker."""
        one = ActorGroup([self.workers.names[worker]], [self.workers.actors[worker]])
        sampling = Sampling(
            temperature=temperature, top_p=1.0, top_k=-1, max_tokens=MAX_TOKENS, stop_token_ids=(2,)
        )
        requests = [
            request_for(key, prompt, num_samples=SAMPLES, run_seed=0, step=0)
            for key, prompt in PROMPTS.items()
        ]

        async def collect() -> list[Rollout]:
            batches = RolloutPool(one, timeout_s=LIMIT_S).generate(requests, sampling)
            return [rollout async for batch in batches for rollout in batch]

        return asyncio.run(collect())

    def gap(self, version: int, temperature: float) -> float:
        """The largest |log π(vLLM) − log π(learner)| over fresh rollouts of every worker."""
        call(self.learners, "use", SFT, temperature)
        gaps = []
        for worker in range(len(self.workers)):
            rollouts = self.rollouts(worker, temperature)
            assert len(rollouts) == SAMPLES * len(PROMPTS)
            assert {rollout.weight_version for rollout in rollouts} == {version}
            pack = pack_of([row_of(rollout, is_demo=False) for rollout in rollouts])
            logp, _ = call(self.learners, "logprobs", pack)[0]
            gaps.append(np.abs(logp - pack.logp_old).max())
        return float(max(gaps))

    def train(self) -> None:
        """One large optimizer step."""
        rows = [row_of(rollout, is_demo=True) for rollout in self.rollouts(0, 1.0)]
        batch = BatchShape(num_questions=len(rows), num_rollouts=1, max_response_tokens=MAX_TOKENS)

        async def update() -> None:
            learner = LearnerGroup(
                self.learners, SFT, batch=batch, tokens_per_microbatch=256, timeout_s=LIMIT_S
            )
            learner.add(rows)
            await learner.finish(0.02)

        asyncio.run(update())


def row_of(rollout: Rollout, *, is_demo: bool) -> Row:
    prompt = PROMPTS[rollout.question_id]
    return Row(
        question_id=rollout.question_id,
        token_ids=np.concatenate([prompt, rollout.token_ids]),
        prompt_length=len(prompt),
        logp_old=rollout.logps,
        is_demo=is_demo,
        reward=1.0,
        group=0,
    )


@pytest.fixture(
    scope="module",
    params=[
        ("qwen2", True, 1, 1, 1, 64),  # everything in one bucket
        ("llama", False, 2, 3, 2, 0.02),  # embedding, head and MLP larger than a bucket, norms in one
    ],
    ids=["qwen2-tied", "llama-untied-2-ranks-zero-3-2-workers"],
)
def wired(request, ray_cluster, tiny_model):
    architecture, tied, num_ranks, stage, num_workers, bucket_mb = request.param
    path = tiny_model(architecture, tied)
    spec = EngineSpec(
        model=ModelConfig(path=str(path)),
        model_path=str(path),
        rollout=RolloutConfig(num_workers=num_workers, num_cpus=CPUS, kv_cache_gib=0.02, max_num_seqs=16),
        max_model_len=96,
        weight_transfer="gloo",
        seed=0,
    )
    room = room_for(learner=num_ranks, rollout=num_workers)
    workers = room.create("rollout", RolloutWorker, [(spec, None)] * num_workers, concurrency=100)
    config = LearnerConfig(num_ranks=num_ranks, zero_stage=stage)
    learners = start_learners(room, path, config, temperature=1.0, estimator=SFT)
    call(workers, "start")
    yield Wired(learners, workers, bucket_mb)
    room.release()


def test_sampler_and_learner_agree_after_every_sync(wired, capsys):
    sync = wired.connect()
    for version in (1, 2):
        if version == 2:
            wired.train()
        # vLLM starts from weights of its own, and a step moves the learner's away: a gap can be seen.
        assert wired.gap(version - 1, 1.0) > 0.1
        report = asyncio.run(sync.push(version))
        assert (report.version, report.num_tensors) == (version, len(call(wired.learners, "weight_metas")[0]))
        for temperature in (1.0, 0.7):
            gap = wired.gap(version, temperature)
            with capsys.disabled():
                print(f"\nversion {version}, temperature {temperature}: largest gap {gap:.1e}")
            assert gap < 1e-3


@pytest.mark.parametrize(
    ("sent_as", "message"),
    [
        ("model.layers.1.mlp.gate.weight", r"no module or parameter named 'layers\.1\.mlp\.gate'"),
        (
            "model.layers.0.input_layernorm.weight",
            r"1 parameters of vLLM unset: .*layers\.1\.input_layernorm",
        ),
    ],
    ids=["unknown", "one-twice-and-one-never"],
)
def test_wrong_names_raise(wired, sent_as, message):
    """Must run last: a worker in the middle of an update serves nobody."""
    call(wired.learners, "rename", {"model.layers.1.input_layernorm.weight": sent_as})
    wired.bucket_mb = 64  # in one transfer, so that the sender does not wait for those that gave up
    sync = wired.connect()
    with pytest.raises(ray.exceptions.RayTaskError, match=message):
        asyncio.run(sync.push(9))
