"""One weight sync as a transaction: join · begin · send and receive · commit, with a version and time limits.

In: the learner's weights. Out: workers that committed them under one version, and the names of those that
did not. A worker that dies, errs or is late is taken out, everybody else gives up at once, and the sync is
tried again without it. Nobody commits before all who are left have received everything, so a version is served
by all workers reported as good or by none. Restarting those that failed is the engine group's business.

A transfer group has one sender, its place 0: the learner's rank 0 for all engines, or with a backend that is `paired`
each rank for the engine processes on its device. Those take the places from 1 on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.config.schema import WeightSyncConfig
from hpt_ray.errors import LearnerFailed, in_one_line
from hpt_ray.weight_sync.backends import BACKENDS
from hpt_ray.weight_sync.buckets import TensorMeta, size_of
from hpt_ray.weight_sync.group import Rendezvous, RendezvousPoint, TransferBroken

MAX_ATTEMPTS = 4
GIVE_UP_LIMIT_S = 5.0  # for a worker to answer after the transfer was called off

Failed = dict[str, str]  # worker name -> why
Sent = tuple[ActorGroup, list[Any]]  # actors that were called, and the references to their results


@dataclass(frozen=True)
class SyncReport:
    """What one sync moved, how long it took, and who was left out of it."""

    version: int
    num_tensors: int
    num_bytes: int
    seconds: float
    attempts: int = 1
    failed: Failed = field(default_factory=dict)


class _Interrupted(Exception):
    """An attempt ended before its commit. `failed` is whose fault it was; nobody's where the network broke."""

    def __init__(self, failed: Failed, why: str):
        super().__init__(why)
        self.failed = failed


class WeightSync:
    """The path from one group of learner ranks to the rollout workers, whoever they are at the moment."""

    def __init__(
        self,
        learners: ActorGroup,
        config: WeightSyncConfig,
        backend: str,
        *,
        workers_per_engine: int,
        keep_committed: bool,
    ):
        """`keep_committed`: who sends keeps a copy in host memory, for `resend` after a step."""
        self._keep = keep_committed
        self.has_copy = False  # of the committed weights: `resend` works after the learner has stepped
        self._learners, self._config, self._backend = learners, config, backend
        self._workers_per_engine = workers_per_engine
        self._bucket_bytes = int(config.bucket_mb * 2**20)
        self._metas: list[TensorMeta] = []
        self._point: RendezvousPoint | None = None
        self._groups: list[Rendezvous] = []  # one a sender
        self._members: list[Any] = []  # the actors that are in it
        self._checked: set[Any] = set()  # actors whose first sync checked every name one by one
        self._committed: tuple[int, Any] | None = None  # the version, and rank 0 that sent it

    @property
    def _senders(self) -> ActorGroup:
        return self._learners if BACKENDS[self._backend].paired else self._learners[:1]

    async def push(self, version: int, workers: ActorGroup) -> SyncReport:
        """Make `version`, the learner's weights as they are, what `workers` serve.

        Raises `LearnerFailed` where the learner is what failed. Where every worker failed, all are named in
        the report, or there was none, the version is the one that they get when they are there again, as long
        as the learner has not stepped.
        """
        self._committed, self.has_copy = None, False
        report = SyncReport(version, 0, 0, 0.0, 0, {})
        if len(workers):
            report = await self._deliver(version, workers, partial(self._send, keep=self._keep))
        # A copy that was broken off is a mix of two versions.
        self.has_copy = self._keep and len(report.failed) < len(workers)
        self._committed = version, self._learners.actors[0]
        return report

    async def resend(self, workers: ActorGroup) -> SyncReport:
        """The version that was committed last to workers that came up since; the others go on serving.

        Without a copy the learner must not have stepped since. Raises as `push` does.
        """
        if self._committed is None or self._committed[1] != self._learners.actors[0]:
            raise LearnerFailed("the ranks have sent no weights since they started; push a version")
        send = self._send_copy if self.has_copy else partial(self._send, keep=False)
        return await self._deliver(self._committed[0], workers, send)

    def _send(self, *, keep: bool) -> Sent:
        return self._learners, self._learners.send("send_weights", self._bucket_bytes, keep)

    def _send_copy(self) -> Sent:
        return self._senders, self._senders.send("resend_weights")

    async def _deliver(self, version: int, workers: ActorGroup, send: Callable[[], Sent]) -> SyncReport:
        """Attempts until all workers that are left have committed."""
        begin = time.perf_counter()
        failed: Failed = {}
        why = ""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            deadline = time.monotonic() + self._config.timeout_s
            try:
                await self._join(workers, deadline)
                await self._transfer(workers, send, deadline)
            except _Interrupted as interruption:
                why, lost = str(interruption), interruption.failed
            else:
                lost = await self._commit(workers, version, deadline)
                if len(lost) < len(workers):
                    seconds, num_bytes = time.perf_counter() - begin, size_of(self._metas)
                    return SyncReport(version, len(self._metas), num_bytes, seconds, attempt, failed | lost)
            failed |= lost
            workers = _without(workers, lost)
            if not len(workers):
                break
        failed |= dict.fromkeys(workers.names, f"none of {MAX_ATTEMPTS} attempts came through: {why}")
        return SyncReport(version, 0, 0, time.perf_counter() - begin, attempt, failed)

    async def _join(self, workers: ActorGroup, deadline: float) -> None:
        """Form the transfer groups anew where their members are not these actors."""
        senders, size = self._senders, self._workers_per_engine
        members = [*senders.actors, *workers.actors]
        if members == self._members:
            return
        rank_0 = senders[:1]
        (self._metas,) = await self._together([(rank_0, rank_0.send("weight_metas"))], deadline)
        if self._point is None:
            host = ray.util.get_node_ip_address()
            self._point = RendezvousPoint(host, timeout_s=self._config.timeout_s)
        world_sizes, seats = seats_of(workers.names, size, len(senders))
        self._groups = [self._point.open(world_size, self._backend) for world_size in world_sizes]
        seated = [({"seats": [(self._groups[i], place) for i, place in engine]},) for engine in seats]
        joining = workers, workers.send_each("connect", seated)
        sending = senders, senders.send_each("join_transfer", [(group,) for group in self._groups])
        await self._together([joining, sending], deadline)
        self._members = members

    async def _transfer(self, workers: ActorGroup, send: Callable[[], Sent], deadline: float) -> None:
        first = [(actor not in self._checked,) for actor in workers.actors]
        await self._together([(workers, workers.send_each("begin_update", first))], deadline)
        update = {"metas": self._metas, "bucket_bytes": self._bucket_bytes}
        await self._together([(workers, workers.send("receive", update)), send()], deadline)
        self._checked.update(workers.actors)

    async def _commit(self, workers: ActorGroup, version: int, deadline: float) -> Failed:
        """Everybody has everything: from here on a worker that fails, fails alone."""
        tasks = _tasks([(workers, workers.send("commit_update", version))])
        await asyncio.wait(tasks.values(), timeout=_until(deadline))
        failed = _failures(tasks)
        expected = {meta.name for meta in self._metas}
        for name in tasks.keys() - failed.keys():
            missing = sorted(expected - set(tasks[name].result()))
            if missing:
                failed[name] = f"{len(missing)} of {len(expected)} weights did not arrive: {missing[:5]}"
        return failed

    async def _together(self, calls: Sequence[Sent], deadline: float) -> list[Any]:
        """The results of calls that need each other.

        At the first failure, or past the deadline, the rendezvous is called off: whoever waits in it gives up.
        Those who don't give up, or who failed by themselves, are at fault. Raises `_Interrupted` that names
        the workers among them, or `LearnerFailed`.
        """
        tasks = _tasks(calls)
        sending = {name: task for name, task in tasks.items() if name in self._learners.names}
        working = {name: task for name, task in tasks.items() if name not in sending}
        done, pending = await asyncio.wait(
            tasks.values(), timeout=_until(deadline), return_when=asyncio.FIRST_EXCEPTION
        )
        errors = [in_one_line(error) for task in done if (error := task.exception())]
        if not errors and not pending:
            return [task.result() for task in tasks.values()]
        self._members = []
        for group in self._groups:
            assert self._point is not None
            self._point.call_off(group)
        await asyncio.wait(tasks.values(), timeout=GIVE_UP_LIMIT_S)
        failed = _failures(working)
        if sending:
            # Its ranks gather to the end together, also where nothing can be sent any more.
            await asyncio.wait(
                sending.values(), timeout=self._config.timeout_s, return_when=asyncio.FIRST_EXCEPTION
            )
        if dead := _failures(sending):
            raise LearnerFailed("; ".join(f"{name}: {why}" for name, why in dead.items()))
        raise _Interrupted(failed, errors[0] if errors else f"no end within {self._config.timeout_s:.0f} s")


def seats_of(
    engines: Sequence[str], processes: int, num_senders: int
) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """The size of each sender's group, and for each process of each engine its sender and its place there.

    Process w of engine i has the sender of number i · processes + w, in turns where there are fewer. With
    `cluster.colocate` that is the rank on its device. An engine's number is in its name; not all need be there.
    """
    world_sizes = [1] * num_senders
    seats: list[list[tuple[int, int]]] = []
    for name in engines:
        seats.append([])
        first = int(name.rpartition("-")[2]) * processes
        for number in range(first, first + processes):
            sender = number % num_senders
            seats[-1].append((sender, world_sizes[sender]))
            world_sizes[sender] += 1
    return world_sizes, seats


def _tasks(calls: Sequence[Sent]) -> dict[str, asyncio.Task[Any]]:
    """What waits for each result, by the actor's name."""

    async def result(ref: Any) -> Any:
        return await ref

    return {
        name: asyncio.create_task(result(ref))
        for actors, refs in calls
        for name, ref in zip(actors.names, refs, strict=True)
    }


def _without(workers: ActorGroup, names: Failed) -> ActorGroup:
    left = [i for i, name in enumerate(workers.names) if name not in names]
    return ActorGroup([workers.names[i] for i in left], [workers.actors[i] for i in left])


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _failures(tasks: Mapping[str, asyncio.Task[Any]]) -> Failed:
    """Who failed by itself, or is not done by now, and why. To be told to give up is no failure."""
    failed: Failed = {}
    for name, task in tasks.items():
        if not task.done():
            task.cancel()
            failed[name] = "did not answer in time"
        elif (error := task.exception()) is not None and not isinstance(error, TransferBroken):
            failed[name] = in_one_line(error)
    return failed
