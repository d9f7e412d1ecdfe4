"""Sampler and learner give the same log-probs bit for bit, whoever else is in their batches and packs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import run_main
from probe import call, micro_batch_of
from test_architectures import FAMILIES, arguments_of, write_model
from wired import PROMPTS, SAMPLES, SFT, Wired, sample_of, start_wired

from hpt_ray.types import Rollout

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(
    scope="module",
    params=[
        ("qwen2", True, 1, 1, {}),
        # So few blocks that sequences make room for each other and are computed again.
        ("llama", False, 2, 3, {"num_gpu_blocks_override": 9}),
    ],
    ids=["qwen2-tied", "llama-untied-2-ranks-zero-3-preempted"],
)
def wired(request, ray_cluster, tiny_model) -> Iterator[Wired]:
    architecture, tied, num_ranks, stage, arguments = request.param
    yield from start_wired(
        tiny_model(architecture, tied),
        num_ranks=num_ranks,
        stage=stage,
        num_workers=1,
        bucket_mb=64,
        batch_invariant=True,
        engine_arguments=arguments,
    )


def by_sample(rollouts: list[Rollout]) -> dict[tuple[str, int], Rollout]:
    return {(rollout.prompt_id, rollout.sample): rollout for rollout in rollouts}


def test_log_probs_are_equal_after_every_sync(wired: Wired) -> None:
    for version in (1, 2):
        if version == 2:
            wired.train()
        assert wired.gap(version - 1, 1.0) > 0.1  # the engine's weights are others until the sync
        asyncio.run(wired.sync().push(version, wired.workers))
        for temperature in (1.0, 0.7):
            assert wired.gap(version, temperature) == 0


def test_batches_and_packs_change_nothing(wired: Wired) -> None:
    """All prompts together, each alone, and once more with the prompt in the prefix cache; packs of one and of many."""
    asyncio.run(wired.sync().push(3, wired.workers))
    call(wired.learners, "use", SFT, 1.0)
    together = by_sample(wired.rollouts(0, 1.0))
    assert len(together) == SAMPLES * len(PROMPTS)
    for prompt in PROMPTS:
        for key, rollout in by_sample(wired.rollouts(0, 1.0, [prompt])).items():
            assert np.array_equal(rollout.token_ids, together[key].token_ids)
            assert np.array_equal(rollout.logprobs, together[key].logprobs)
    samples = [sample_of(rollout, is_demo=False) for rollout in together.values()]
    for size in (1, 5, len(samples)):
        for begin in range(0, len(samples), size):
            pack = micro_batch_of(samples[begin : begin + size])
            logprobs, _ = call(wired.learners, "logprobs", pack)[0]
            assert np.array_equal(logprobs, pack.old_logprobs)


def test_a_run_is_exactly_on_policy_at_every_step(tmp_path: Path) -> None:
    """Two engines and two ranks of a Qwen3; GRPO divides by the sampler's log-probs."""
    write_model(tmp_path / "model", *FAMILIES["qwen3"])
    ended = run_main(
        [
            *arguments_of(tmp_path),
            "model.batch_invariant=true",
            "run.steps=3",
            "rollout.num_workers=2",
            "learner.num_ranks=2",
            "learner.gradient_checkpointing=true",
        ]
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    lines = (tmp_path / "runs" / "latest" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line["step"]]
    assert [line["policy/logprob_gap_max"] for line in steps] == [0.0, 0.0, 0.0]
    assert [line["policy/effective_sample_size"] for line in steps] == [1.0, 1.0, 1.0]
    assert all(line["optim/grad_norm"] > 0 for line in steps)
