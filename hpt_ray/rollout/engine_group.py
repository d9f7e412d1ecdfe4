"""The rollout workers as an engine group: who serves, who holds which weights, who is started again.

In: a way to make worker i, and the path the weights come on. Out: workers that serve the committed version, and
word (`on_up`, `on_down`) when one comes or goes. A worker whose process ends, whose engine fails or which makes
no progress is killed and started again in its place; it serves once it holds the committed weights. The run
goes on with the others, down to one. What a worker was asked for is the router's business.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.process import log_file
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import RolloutConfig
from hpt_ray.errors import LearnerFailed, NoWorkerLeft, WaitExpired, in_one_line
from hpt_ray.observe.trace import SpanRecord
from hpt_ray.rollout.engine import EngineSpec
from hpt_ray.rollout.health import Event, Health, State
from hpt_ray.rollout.worker import RolloutWorker
from hpt_ray.weight_sync.transaction import WeightSync

CHECK_EVERY_S = 5.0  # how often the engines are asked for their progress
ANSWER_LIMIT_S = 10.0  # for a worker's control calls, which do not wait for its engine
PLACED_SOON_S = 30.0  # for a process to be there where there is room
FIRST_PAUSE_S = 0.5  # before a worker is started again; doubles with every failure in a row


@dataclass(eq=False)
class Worker:
    """A place in the engine group and the actor that fills it now."""

    index: int
    actor: Any
    health: Health = field(default_factory=Health)
    steps: int = 0  # of its engine, when last asked
    progress_s: float = field(default_factory=time.monotonic)  # when it last made any
    memory_mb: float | None = None  # of its process, when last asked
    why: str = ""  # it failed

    @property
    def name(self) -> str:
        return f"rollout-{self.index}"

    async def call(self, method: str, *args: Any, timeout_s: float, what: str | None = None) -> Any:
        """What its actor answers; raises as `ActorGroup.call` does."""
        (answer,) = await _group([self]).call(method, *args, timeout_s=timeout_s, what=what)
        return answer


class EngineGroup:
    """`num_workers` rollout workers. `make(i)` starts the actor of worker i, on `gpus[i]` where others reserved them.

    Without `sync` (evaluation) the engines load their weights themselves.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        num_workers: int,
        config: RolloutConfig,
        sync: WeightSync | None,
        gpus: list[str] | None = None,
    ):
        self._make, self._config, self._sync, self._gpus = make, config, sync, gpus
        self.workers = [Worker(i, make(i)) for i in range(num_workers)]
        self.faults: Counter[str] = Counter()  # what failed and what was done, since the run began
        self.say: Callable[[str], None] = lambda text: None  # what a person should hear
        self.on_up: Callable[[Worker], None] = lambda worker: None
        self.on_down: Callable[[Worker], None] = lambda worker: None
        self._has_served = False  # weights were committed once
        self._weights_moved = False  # the learner's weights are no longer those that were committed
        self._learner_failed: LearnerFailed | None = None  # when a worker that came up asked it for weights
        self._moving_weights = asyncio.Lock()
        self._awake = asyncio.Event()
        self._awake.set()
        self._coming_up: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Wait until every engine is up. At the start of a run, one that does not come up ends it."""
        limit = self._config.start_timeout_s
        await _group(self.workers).call("start", timeout_s=limit, what="start the vLLM engine")
        for worker in self.workers:
            self._note(worker, Event.STARTED)
            if self._sync is None:
                self._note(worker, Event.COMMITTED)
        self._spawn(self._watch())

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for worker in self.workers:
            ray.kill(worker.actor)

    # -- who serves --------------------------------------------------------------------------------

    @property
    def serving(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.health.serves]

    def check_hope(self) -> None:
        """Raise `NoWorkerLeft` where every worker has been given up, `LearnerFailed` where all wait for its weights."""
        if all(worker.health.state is State.RETIRED for worker in self.workers):
            whys = "\n".join(f"  {worker.name}: {worker.why}" for worker in self.workers)
            raise NoWorkerLeft(f"every rollout worker failed more than rollout.max_restarts times:\n{whys}")
        if self._learner_failed is not None and not self.serving:
            raise self._learner_failed

    def failed(self, worker: Worker, actor: Any, error: BaseException | str) -> None:
        """Take a worker out whose `actor` failed, and start it again. Hearing of one death twice does no harm."""
        if worker.actor is not actor or worker.health.state in (State.DEAD, State.RETIRED):
            return
        worker.why = error if isinstance(error, str) else in_one_line(error)
        self.say(f"{worker.name} failed: {worker.why}")
        self.faults["rollout_failed"] += 1
        self._note(worker, Event.FAILED)
        self.on_down(worker)
        ray.kill(actor)
        self._spawn(self._restart(worker))

    def delivered(self, worker: Worker) -> None:
        worker.health = worker.health.delivered()
        worker.progress_s = time.monotonic()

    def use_gpus(self, gpus: list[str]) -> None:
        """Worker i is to be on `gpus[i]`; one that was made for others, as its node was lost, is made again."""
        assert self._gpus is not None, "they reserve their own"
        for worker, new in zip(self.workers, gpus, strict=True):
            if (old := self._gpus[worker.index]) != new:
                self._gpus[worker.index] = new
                self.failed(worker, worker.actor, f"its GPUs are {new} now, and were {old}")

    # -- weights -----------------------------------------------------------------------------------

    async def weights_move(self) -> None:
        """The learner is about to step: from now on its weights are not those that were committed.

        Where they are on their way to a worker that came up, they get there first.
        """
        async with self._moving_weights:
            self._weights_moved = True

    async def push(self, version: int) -> float:
        """The learner's weights as they are, under `version`, to every worker that is up. Seconds it took.

        A worker that fails on the way is taken out; one that is not up gets the weights when it is.
        """
        assert self._sync is not None, "nobody to send weights"
        async with self._moving_weights:
            asleep = not self._awake.is_set()
            if asleep:
                await self._each("wake", "weights")
            targets = {worker: worker.actor for worker in self.workers if worker.health.takes_weights}
            report = await self._sync.push(version, _group(targets))
            if targets:
                self._check_first(report.failed, len(targets))
                self._settle(targets, report.failed)
            self._weights_moved, self._learner_failed = False, None
            if asleep:
                await self._each("wake", "kv_cache")
                self._awake.set()
        return report.seconds

    # -- memory ------------------------------------------------------------------------------------

    async def sleep(self) -> None:
        """Every engine gives up its memory until the next push. No rollout may be under way.

        Where one is just coming up, it does so first; one that fails comes up again after that push.
        """
        self._awake.clear()
        if self._coming_up:
            await asyncio.wait([*self._coming_up])
        await self._each("sleep")

    async def _each(self, method: str, *args: Any) -> None:
        """Call the workers that are up. One that errs or is late has failed."""

        async def one(worker: Worker) -> None:
            actor = worker.actor
            try:
                await worker.call(method, *args, timeout_s=self._config.start_timeout_s)
            except Exception as error:
                self.failed(worker, actor, error)

        await asyncio.gather(*(one(worker) for worker in self.workers if worker.health.takes_weights))

    def _check_first(self, failed: dict[str, str], count: int) -> None:
        """Where nobody takes the first weights of a run, starting again does not help."""
        if len(failed) == count and not self._has_served:
            whys = "\n".join(f"  {name}: {why}" for name, why in failed.items())
            raise NoWorkerLeft(f"no rollout worker could take the weights of the learner:\n{whys}")
        self._has_served = True

    def _settle(self, targets: dict[Worker, Any], failed: dict[str, str]) -> None:
        """What a sync came to for the actors that took part. They may have been replaced since."""
        for worker, actor in targets.items():
            if worker.name in failed:
                self.faults["sync_failed"] += 1
                self.failed(worker, actor, failed[worker.name])
            elif worker.actor is actor and worker.health.takes_weights:
                self._note(worker, Event.COMMITTED)

    async def _catch_up(self, worker: Worker) -> None:
        """The committed weights to a worker that has just come up, beside whatever goes on."""
        async with self._moving_weights:
            if worker.health.state is not State.STALE:
                return
            if self._sync is None:
                self._note(worker, Event.COMMITTED)
            elif not self._weights_moved or self._sync.has_copy:
                targets = {worker: worker.actor}
                try:
                    report = await self._sync.resend(_group(targets))
                except LearnerFailed as error:  # not the worker's fault, which has the next push to wait for
                    self._learner_failed = error
                else:
                    self._settle(targets, report.failed)
            # Else the push that is about to come brings it the next version.

    # -- failures ----------------------------------------------------------------------------------

    async def _restart(self, worker: Worker) -> None:
        if worker.health.failures > self._config.max_restarts:
            self._note(worker, Event.GIVEN_UP)
            self.faults["rollout_retired"] += 1
            self.say(f"{worker.name} is given up (rollout.max_restarts={self._config.max_restarts}).")
            return
        await asyncio.sleep(FIRST_PAUSE_S * 2 ** (worker.health.failures - 1))
        actor = worker.actor = self._make(worker.index)
        self._note(worker, Event.RESTARTED)
        self.faults["rollout_restarted"] += 1
        try:
            await self._until_placed(worker)
            await self._come_up(worker)
        except Exception as error:
            self.failed(worker, actor, error)

    async def _until_placed(self, worker: Worker) -> None:
        """Until its process is there. Where its node was lost, and there is no other, that may take long.

        No limit of its own: it holds nothing up. The limit is `rollout.timeout_s`, when nobody else serves.
        """
        waits = f"{worker.name} waits for room in the cluster; the run goes on without it."
        timer = asyncio.get_running_loop().call_later(PLACED_SOON_S, self.say, waits)
        try:
            await worker.call("__ray_ready__", timeout_s=math.inf)
        finally:
            timer.cancel()

    async def _come_up(self, worker: Worker) -> None:
        await self._awake.wait()  # else its memory is somebody else's
        task = asyncio.current_task()
        assert task is not None
        self._coming_up.add(task)
        task.add_done_callback(self._coming_up.discard)
        limit = self._config.start_timeout_s
        await worker.call("start", timeout_s=limit, what="start the vLLM engine")
        self._note(worker, Event.STARTED)
        await self._catch_up(worker)

    async def _watch(self) -> None:
        """Ask the engines for their progress; doubt, and then replace, one that makes none."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            serving = [w for w in self.workers if w.health.state in (State.HEALTHY, State.SUSPECT)]
            await asyncio.gather(*(self._check(worker) for worker in serving))

    async def _check(self, worker: Worker) -> None:
        actor = worker.actor
        try:
            at = await worker.call("progress", timeout_s=ANSWER_LIMIT_S)
        except WaitExpired:
            pass
        except Exception as error:
            return self.failed(worker, actor, error)
        else:
            worker.memory_mb = at.memory_mb
            if not at.busy or at.steps != worker.steps:
                worker.steps, worker.progress_s = at.steps, time.monotonic()
        if worker.actor is not actor or worker.health.state not in (State.HEALTHY, State.SUSPECT):
            return  # it failed meanwhile
        silent_s = time.monotonic() - worker.progress_s
        limit = self._config.stall_timeout_s
        if silent_s > limit:
            self.failed(worker, actor, f"its engine made no step for {limit:.0f} s (rollout.stall_timeout_s)")
        elif silent_s > limit / 3:
            self._note(worker, Event.SILENT)
        else:
            self._note(worker, Event.PROGRESS)

    @property
    def memory_mb(self) -> float | None:
        """Of the largest worker, as far as it is known."""
        return max((w.memory_mb for w in self.workers if w.memory_mb is not None), default=None)

    # -- what a person sees ------------------------------------------------------------------------

    async def spans(self) -> dict[str, list[SpanRecord]]:
        """What the engines did since the last call, by worker. One that does not answer has failed."""
        spans: dict[str, list[SpanRecord]] = {}
        for worker in self.serving:
            actor = worker.actor
            try:
                spans[worker.name] = await worker.call("spans", timeout_s=ANSWER_LIMIT_S)
            except Exception as error:
                self.failed(worker, actor, error)
        return spans

    # ----------------------------------------------------------------------------------------------

    def _note(self, worker: Worker, event: Event) -> None:
        served = worker.health.serves
        worker.health = worker.health.after(event)
        if worker.health.serves and not served:
            worker.progress_s = time.monotonic()
            self.on_up(worker)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _group(workers: Iterable[Worker]) -> ActorGroup:
    workers = [*workers]
    return ActorGroup([worker.name for worker in workers], [worker.actor for worker in workers])


ROLLOUT_CONCURRENCY = 100


def make_engine_group(
    cluster: Cluster,
    spec: EngineSpec,
    sync: WeightSync | None,
    logs: Path,
    gpus: list[str] | None = None,
) -> EngineGroup:
    """The rollout workers, coming up; each on its own of `gpus`, where others reserved them."""

    def arguments(i: int) -> tuple[EngineSpec, str | None]:
        # Engines that share a seed would draw the same responses to unseeded requests.
        return replace(spec, seed=spec.seed + i, gpus=gpus[i] if gpus else None), log_file(logs, "rollout", i)

    make = cluster.maker("rollout", RolloutWorker, arguments, max_concurrency=ROLLOUT_CONCURRENCY)
    return EngineGroup(make, spec.rollout.num_workers, spec.rollout, sync, gpus)
