"""Engine group and router with workers that respond, die and hang as they are told: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from probe import room_for
from scripted import DIE, HANG, RESPOND, ScriptedWorker

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.config.schema import RolloutConfig
from hpt_ray.errors import LearnerFailed, NoWorkerLeft, WaitExpired
from hpt_ray.rollout import engine_group as engine_group_module
from hpt_ray.rollout.engine_group import EngineGroup
from hpt_ray.rollout.health import State
from hpt_ray.rollout.requests import GenerateRequest, Sampling, request_for
from hpt_ray.rollout.router import MAX_TRIES, WINDOW, Draw, Router
from hpt_ray.types import FinishReason, Rollout
from hpt_ray.weight_sync.transaction import SyncReport

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=8, stop_token_ids=(1,))
SAMPLES = 4

Test = Callable[[EngineGroup, Router], Awaitable[None]]


class ScriptedSync:
    """As `WeightSync`, without weights: a push takes as long as `meanwhile`, and comes to what a test says."""

    has_copy = False
    learner_failed: LearnerFailed | None = None

    def __init__(self) -> None:
        self.resent: list[str] = []

    async def meanwhile(self) -> dict[str, str]:
        return {}

    async def while_resending(self) -> None:
        pass

    async def push(self, version: int, workers: ActorGroup) -> SyncReport:
        return SyncReport(version, 1, 1, 0.0, failed=await self.meanwhile())

    async def resend(self, workers: ActorGroup) -> SyncReport:
        await self.while_resending()
        if self.learner_failed is not None:
            raise self.learner_failed
        self.resent += workers.names
        return SyncReport(0, 1, 1, 0.0)


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(engine_group_module, "CHECK_EVERY_S", 0.2)
    monkeypatch.setattr(engine_group_module, "FIRST_PAUSE_S", 0.05)


@pytest.fixture
def with_engines(ray_cluster) -> Callable[..., None]:
    """Runs a test with an engine group that is up and a router over it."""

    def run(
        test: Test,
        *,
        num_workers: int = 2,
        breaks_at_start: Path | None = None,
        max_num_seqs: int = 256,
        timeout_s: float = 60.0,
        sync: ScriptedSync | None = None,
        gpus: list[str] | None = None,
        **config,
    ) -> None:
        room = room_for(rollout=num_workers)

        def arguments(i: int) -> tuple[object, str]:
            return gpus[i] if gpus else i, str(breaks_at_start or "")

        make = room.maker("rollout", ScriptedWorker, arguments, max_concurrency=100)

        async def whole() -> None:
            limits = RolloutConfig(num_workers=num_workers, **config)
            engines = EngineGroup(make, num_workers, limits, sync, gpus)
            try:
                await engines.start()
                await test(engines, Router(engines, max_num_seqs=max_num_seqs, timeout_s=timeout_s))
            finally:
                engines.stop()

        try:
            asyncio.run(whole())
        finally:
            room.release()

    return run


def ask(name: str, what: int, milliseconds: int, expected_tokens: float = 1.0) -> GenerateRequest:
    prompt = np.array([what, milliseconds], np.int32)
    return request_for(name, prompt, num_samples=SAMPLES, run_seed=0, step=1, expected_tokens=expected_tokens)


async def draw(router: Router, requests: list[GenerateRequest]) -> list[Rollout]:
    return await read(router.generate(requests, SAMPLING))


async def read(draw: Draw) -> list[Rollout]:
    return [rollout async for batch in draw for rollout in batch]


def keys(rollouts: list[Rollout]) -> Counter[tuple[str, int]]:
    return Counter((rollout.prompt_id, rollout.sample) for rollout in rollouts)


def each_once(names: list[str]) -> Counter[tuple[str, int]]:
    return Counter((name, sample) for name in names for sample in range(SAMPLES))


async def until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("in_advance", [False, True])
def test_a_prompt_may_be_drawn_again_until_it_is_settled(with_engines, in_advance):
    """Every prompt twice, one of them three times, though a worker dies in the second round."""
    names = ["a", "b", "c"]

    async def test(engines: EngineGroup, router: Router) -> None:
        router.in_advance = in_advance
        drawing = router.generate([ask(name, RESPOND, 300) for name in names], SAMPLING, goes_on=True)
        found: list[Rollout] = []
        rounds: Counter[str] = Counter()
        async for batch in drawing:
            found += batch
            for name in names:
                mine = sum(rollout.prompt_id == name for rollout in found)
                if mine < SAMPLES * (rounds[name] + 1):
                    continue
                rounds[name] += 1
                if rounds[name] == (3 if name == "b" else 2):
                    drawing.settle(name)
                    continue
                more = ask(name, RESPOND, 300)
                drawing.again(replace(more, samples=tuple(range(mine, mine + SAMPLES))))
                if rounds.total() == len(names):
                    ray.kill(engines.workers[0].actor)
        assert Counter(rollout.prompt_id for rollout in found) == {"a": 8, "b": 12, "c": 8}
        assert set(keys(found).values()) == {1}
        assert drawing.num_missing == 0

    with_engines(test)


def test_what_is_aborted_is_not_waited_for_again(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        drawing = router.generate([ask(name, RESPOND, 10) for name in "ab"], SAMPLING, goes_on=True)
        found: list[Rollout] = []
        async for batch in drawing:
            found += batch
            if len(found) == 2 * SAMPLES:
                drawing.again(replace(ask("a", HANG, 0), samples=tuple(range(SAMPLES, 2 * SAMPLES))))
                await drawing.abort({"a", "b"})
        assert len(found) == 2 * SAMPLES

    with_engines(test)


def test_what_a_dead_worker_owed_is_drawn_by_others_with_the_same_seeds(with_engines):
    names = [f"q{i}" for i in range(12)]

    async def test(engines: EngineGroup, router: Router) -> None:
        requests = [ask(name, RESPOND, 600) for name in names]
        seeds = {(r.prompt_id, s): seed for r in requests for s, seed in zip(r.samples, r.seeds, strict=True)}
        drawing = asyncio.create_task(draw(router, requests))
        await asyncio.sleep(0.3)
        ray.kill(engines.workers[0].actor)
        rollouts = await drawing
        assert keys(rollouts) == each_once(names)
        assert all(r.token_ids[0] == seeds[r.prompt_id, r.sample] % 1000 for r in rollouts)
        assert engines.faults["rollout_failed"] == 1
        assert router.faults["rollouts_requeued"] > 0
        # It comes back and serves.
        await until(lambda: len(engines.serving) == 2)
        rollouts = await draw(router, [ask(f"later{i}", RESPOND, 50) for i in range(8)])
        assert {rollout.text for rollout in rollouts} == {"0", "1"}

    with_engines(test)


def test_the_only_worker_is_waited_for(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        drawing = asyncio.create_task(draw(router, [ask("q", RESPOND, 500)]))
        await asyncio.sleep(0.2)
        ray.kill(engines.workers[0].actor)
        assert keys(await drawing) == each_once(["q"])

    with_engines(test, num_workers=1)


def test_a_prompt_that_kills_every_worker_is_lost_and_the_others_are_not(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        requests = [ask("poison", DIE, 1500), *(ask(f"q{i}", RESPOND, 30) for i in range(6))]
        rollouts = await draw(router, requests)
        assert keys(rollouts) == each_once(["poison", *(f"q{i}" for i in range(6))])
        finishes = {r.prompt_id: r.finish for r in rollouts}
        assert finishes.pop("poison") is FinishReason.LOST
        assert set(finishes.values()) == {FinishReason.STOP}
        assert router.faults["rollouts_lost"] == SAMPLES
        assert engines.faults["rollout_failed"] == MAX_TRIES

    with_engines(test)


def test_a_worker_that_hangs_is_replaced(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        hung = asyncio.create_task(draw(router, [ask("hang", HANG, 50)]))
        await until(lambda: any(w.health.state is State.SUSPECT for w in engines.workers))
        # Meanwhile the other one serves alone.
        await draw(router, [ask(f"q{i}", RESPOND, 10) for i in range(4)])
        await until(lambda: engines.faults["rollout_failed"] > 0)
        assert "rollout.stall_timeout_s" in max(w.why for w in engines.workers)
        hung.cancel()

    with_engines(test, stall_timeout_s=1.5)


def test_workers_that_do_not_come_up_again_end_the_run_with_their_reasons(with_engines, tmp_path):
    broken = tmp_path / "broken"

    async def test(engines: EngineGroup, router: Router) -> None:
        broken.touch()
        with pytest.raises(NoWorkerLeft, match="out of memory"):
            await draw(router, [ask("poison", DIE, 50)])
        assert engines.faults["rollout_retired"] == 1

    with_engines(test, num_workers=1, breaks_at_start=broken, max_restarts=1)


def test_a_worker_without_room_is_waited_for_while_others_serve(with_engines, monkeypatch):
    monkeypatch.setattr(engine_group_module, "PLACED_SOON_S", 0.3)
    said: list[str] = []

    async def test(engines: EngineGroup, router: Router) -> None:
        homeless = ray.remote(ScriptedWorker).options(resources={"a node that was lost": 1})
        engines.say, engines._make = said.append, homeless.remote
        engines.failed(engines.workers[0], engines.workers[0].actor, "its node was lost")
        await until(lambda: any("waits for room" in text for text in said))
        rollouts = await draw(router, [ask(f"q{i}", RESPOND, 10) for i in range(4)])
        assert {rollout.text for rollout in rollouts} == {"1"}
        assert engines.workers[0].health.state is State.STARTING
        assert engines.faults["rollout_failed"] == 1

    with_engines(test)


@pytest.mark.parametrize("failed", [{}, {"rollout-0": "it died"}], ids=["after its commit", "before it"])
def test_what_a_sync_came_to_for_a_dead_worker_is_not_said_of_its_successor(with_engines, failed):
    """A successor that comes up while others still receive has no weights: it may not serve, and has not failed."""
    sync = ScriptedSync()

    async def test(engines: EngineGroup, router: Router) -> None:
        await engines.push(0)
        worker = engines.workers[0]

        async def dies_and_comes_up() -> dict[str, str]:
            ray.kill(worker.actor)
            await until(lambda: worker.health.state is not State.HEALTHY)
            await until(lambda: worker.health.state is State.STALE)
            return failed

        sync.meanwhile = dies_and_comes_up
        await engines.push(1)
        assert worker.health.state is State.STALE
        await until(lambda: len(engines.serving) == 2)
        assert sync.resent == ["rollout-0"]
        assert engines.faults["rollout_failed"] == 1

    with_engines(test, sync=sync)


def test_the_learner_does_not_step_while_its_weights_are_on_their_way_to_a_successor(with_engines):
    """They would arrive newer than the version that is said of them."""
    sync = ScriptedSync()

    async def test(engines: EngineGroup, router: Router) -> None:
        await engines.push(0)
        under_way, arrives, happened = asyncio.Event(), asyncio.Event(), []

        async def takes_long() -> None:
            under_way.set()
            await arrives.wait()
            happened.append("weights arrived")

        sync.while_resending = takes_long
        ray.kill(engines.workers[0].actor)
        await under_way.wait()
        asyncio.get_running_loop().call_later(0.2, arrives.set)
        await engines.weights_move()
        happened.append("learner steps")
        assert happened == ["weights arrived", "learner steps"]

    with_engines(test, sync=sync)


def test_a_worker_that_comes_up_while_the_learner_is_down_waits_for_its_weights(with_engines):
    sync = ScriptedSync()

    async def test(engines: EngineGroup, router: Router) -> None:
        await engines.push(0)
        sync.learner_failed = LearnerFailed("learner-0: gone")
        ray.kill(engines.workers[0].actor)
        with pytest.raises(LearnerFailed, match="learner-0"):  # for the driver, since nobody can serve
            await draw(router, [ask("q", RESPOND, 10)])
        await engines.push(1)
        assert keys(await draw(router, [ask("q", RESPOND, 10)])) == each_once(["q"])
        assert engines.faults["rollout_failed"] == 1

    with_engines(test, num_workers=1, sync=sync)


def test_a_worker_whose_place_is_on_other_gpus_now_is_made_again_there(with_engines):
    """Each responds with the GPUs that it was made for."""

    async def test(engines: EngineGroup, router: Router) -> None:
        stays = engines.workers[0].actor
        engines.use_gpus(["0", "6"])
        await until(lambda: len(engines.serving) == 2)
        rollouts = await draw(router, [ask(f"q{i}", RESPOND, 100) for i in range(8)])
        assert {rollout.text for rollout in rollouts} == {"0", "6"}
        assert engines.workers[0].actor is stays
        assert engines.faults["rollout_failed"] == 1

    with_engines(test, gpus=["0", "1"])


def test_a_pool_that_gets_nothing_says_whom_it_waited_for(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        with pytest.raises(WaitExpired, match=r"rollout-0.*|rollout.timeout_s"):
            await draw(router, [ask("hang", HANG, 0)])

    with_engines(test, num_workers=1, timeout_s=1.0)


def test_an_aborted_prompt_ends_at_once_and_what_it_cost_is_known(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        begin = time.monotonic()
        batch = router.generate([ask("slow", RESPOND, 20_000), ask("fast", RESPOND, 10)], SAMPLING)
        drawing = asyncio.create_task(read(batch))
        await asyncio.sleep(0.3)
        await batch.abort({"slow"})
        assert keys(await drawing) == each_once(["fast"])
        assert time.monotonic() - begin < 10
        assert router.aborted_tokens == 7

    with_engines(test)


def test_a_worker_is_given_little_more_than_it_decodes_and_work_is_even(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        rollouts = await draw(router, [ask(f"q{i}", RESPOND, 40) for i in range(30)])
        assert keys(rollouts) == each_once([f"q{i}" for i in range(30)])
        for worker in engines.workers:
            assert await worker.actor.most.remote() < WINDOW * 8 + SAMPLES
        share = Counter(rollout.text for rollout in rollouts)
        assert abs(share["0"] - share["1"]) <= 6 * SAMPLES

    with_engines(test, max_num_seqs=8)


def test_what_is_held_is_drawn_only_when_it_is_asked_for(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        requests = [replace(ask(name, RESPOND, 30), num_held=3) for name in ("wanted", "settled")]
        batch = router.generate(requests, SAMPLING)
        drawing = asyncio.create_task(read(batch))
        await asyncio.sleep(0.5)
        assert not drawing.done()
        batch.release({"wanted"})
        await batch.abort({"settled"})
        assert keys(await drawing) == each_once(["wanted"]) + Counter({("settled", 0): 1})
        assert router.aborted_tokens == 0  # nothing was running for what was held

    with_engines(test)


def test_two_batches_at_a_time_do_not_mix(with_engines):
    async def test(engines: EngineGroup, router: Router) -> None:
        first, second = await asyncio.gather(
            draw(router, [ask("q0", RESPOND, 100)]),
            draw(router, [ask("q0", RESPOND, 50), ask("q1", RESPOND, 10)]),
        )
        assert keys(first) == each_once(["q0"])
        assert keys(second) == each_once(["q0", "q1"])

    with_engines(test)
