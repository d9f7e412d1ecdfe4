"""Members of a weight sync that die or freeze in the middle of it: the others go on, on one version."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from probe import call
from wired import Wired, start_ranks, start_wired

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.errors import LearnerFailed
from hpt_ray.weight_sync.transaction import WeightSync

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

PAUSE_S, KILL_AT = 0.1, 8  # seconds between two tensors; how many have been read when the fault comes


@pytest.fixture(scope="module", params=["gloo", "ipc"])
def wired(request, ray_cluster, tiny_model) -> Iterator[Wired]:
    """Over ipc rank 0 sends to workers 0 and 2, rank 1 to worker 1; in the end nothing is left in shared memory."""
    before = left_in_shared_memory()
    yield from start_wired(
        tiny_model("llama", False),
        num_ranks=2,
        stage=3,
        num_workers=3,
        bucket_mb=0.02,
        backend=request.param,
    )
    assert left_in_shared_memory() <= before


def left_in_shared_memory() -> set[str]:
    """Files of torch's whose process has ended."""
    names = [file.name for file in Path("/dev/shm").glob("torch_*")]
    return {name for name in names if not Path("/proc", name.split("_")[1]).exists()}


def push_with_fault(
    wired: Wired, sync: WeightSync, version: int, actor: Any, fault: signal.Signals, progress: Path
) -> tuple[Any, float]:
    """The outcome of a push in the middle of which `actor` gets a signal, and the seconds from then on."""
    progress.write_text("0")
    pid = ray.get(actor.pid.remote())
    call(wired.learners, "slow_down", PAUSE_S, str(progress))

    async def push() -> tuple[Any, float]:
        pushing = asyncio.create_task(sync.push(version, wired.workers))
        while int(progress.read_text() or 0) < KILL_AT:
            assert not pushing.done(), pushing.exception()
            await asyncio.sleep(0.01)
        os.kill(pid, fault)
        begin = time.monotonic()
        (outcome,) = await asyncio.gather(pushing, return_exceptions=True)
        return outcome, time.monotonic() - begin

    outcome = asyncio.run(push())
    if wired.learners.actors[0] != actor:
        call(wired.learners, "slow_down", 0.0, str(progress))
    return outcome


def replace_worker(wired: Wired, index: int) -> ActorGroup:
    """A fresh engine under the old name, as the engine group makes it."""
    ray.kill(wired.workers.actors[index])
    wired.workers.actors[index] = wired.make_worker(index)
    fresh = wired.workers[index : index + 1]
    call(fresh, "start")
    return fresh


@pytest.mark.parametrize(
    ("fault", "timeout_s", "limit_s"),
    [(signal.SIGKILL, 120.0, 15.0), (signal.SIGSTOP, 12.0, 40.0)],
    ids=["killed", "frozen"],
)
def test_survivors_commit_without_an_engine_that_is_lost(wired, tmp_path, capsys, fault, timeout_s, limit_s):
    sync = wired.sync(timeout_s=timeout_s)
    assert asyncio.run(sync.push(1, wired.workers)).failed == {}
    wired.train()
    report, seconds = push_with_fault(wired, sync, 2, wired.workers.actors[1], fault, tmp_path / "progress")
    with capsys.disabled():
        print(f"\n{fault.name}: {seconds:.1f} s until the others had committed; {report.failed}")
    assert (report.version, report.attempts, list(report.failed)) == (2, 2, ["rollout-1"])
    assert seconds < limit_s
    assert wired.gap(2, 1.0, [0, 2]) < 1e-5

    # The engine that takes its place gets the committed weights, and the next sync includes it.
    fresh = replace_worker(wired, 1)
    assert asyncio.run(sync.resend(fresh)).failed == {}
    assert wired.gap(2, 1.0) < 1e-5
    wired.train()
    report = asyncio.run(sync.push(3, wired.workers))
    assert (report.attempts, report.failed) == (1, {})
    assert wired.gap(3, 1.0) < 1e-5


def test_a_restarted_engine_gets_the_committed_weights_after_the_learner_has_stepped(wired):
    sync = wired.sync(keep_committed=True)
    asyncio.run(sync.push(5, wired.workers))
    wired.train()
    fresh = replace_worker(wired, 2)
    assert asyncio.run(sync.resend(fresh)).version == 5
    others, restarted = wired.rollouts(0, 1.0), wired.rollouts(2, 1.0)
    by_sample = {(r.prompt_id, r.sample): r for r in others}
    assert {r.weight_version for r in others + restarted} == {5}
    for rollout in restarted:
        other = by_sample[rollout.prompt_id, rollout.sample]
        np.testing.assert_array_equal(rollout.token_ids, other.token_ids)
        np.testing.assert_allclose(rollout.logprobs, other.logprobs, atol=1e-5)
    assert wired.gap(5, 1.0) > 0.1  # the learner is ahead
    asyncio.run(sync.push(6, wired.workers))
    assert wired.gap(6, 1.0) < 1e-5

    # A sync that finds nobody up: who comes up then gets that version, not the copy of the one before.
    wired.train()
    asyncio.run(sync.push(7, ActorGroup([], [])))
    assert not sync.has_copy
    assert asyncio.run(sync.resend(wired.workers)).version == 7
    assert wired.gap(7, 1.0) < 1e-5


def test_a_lost_learner_is_named_and_the_engines_take_the_next_one(wired, tmp_path):
    """Last: the learner begins anew."""
    sync = wired.sync()
    asyncio.run(sync.push(8, wired.workers))
    outcome, seconds = push_with_fault(
        wired, sync, 9, wired.learners.actors[0], signal.SIGKILL, tmp_path / "progress"
    )
    assert isinstance(outcome, LearnerFailed)
    assert "learner-0" in str(outcome)
    assert seconds < 15.0
    wired.learners.restart()
    start_ranks(wired.learners)
    with pytest.raises(RuntimeError, match="push a version"):
        asyncio.run(sync.resend(wired.workers))
    report = asyncio.run(sync.push(10, wired.workers))
    assert (report.attempts, report.failed) == (1, {})
    assert wired.gap(10, 1.0) < 1e-5
