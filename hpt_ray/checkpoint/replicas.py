"""The training state after the last step, in the memory of other processes: lost ranks start again from there.

    rank ──pieces──▶ StateReplica on its own node        it ended, or others of its group did
                └──▶ StateReplica on another node        its node was lost

In: the ranks after a step, and the run's state. Out: new ranks in their place, as they were then. A checkpoint on
disk is what another driver starts from; this is what the driver, while it lives, goes back to. The copy of a step
replaces the one before only once it is whole.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpt_ray.checkpoint.state import RunState
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.errors import LearnerFailed, WaitExpired, in_one_line

ANSWER_S = 30.0  # for a replica to say whether it has a part


class StateReplica:
    """What one rank had after one step and, while it comes, after the next. An actor."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[str, Any]] = {}  # step → name → part

    def put(self, step: int, name: str, part: Any) -> None:
        # Of its own: what Ray hands over is in the object store, which is not meant to keep it.
        own = part.copy() if isinstance(part, np.ndarray) else part
        self._parts.setdefault(step, {})[name] = own

    def get(self, step: int, name: str) -> Any:
        return self._parts[step][name]

    def keep(self, step: int) -> None:
        """The copy of `step` is whole, on all replicas: forget any other."""
        self._parts = {step: self._parts[step]}

    def has(self, step: int) -> bool:
        return step in self._parts


@dataclass(frozen=True)
class _Copy:
    """A whole copy: the run's state, what the driver keeps beside it, and rank by rank who has it."""

    state: RunState
    folder: tempfile.TemporaryDirectory[str]
    replicas: list[list[Any]]


class Replicas:
    """The copies of one run's ranks. One is made at a time, while the run goes on."""

    def __init__(self, *, timeout_s: float):
        self._timeout_s = timeout_s
        self._whole: _Copy | None = None
        self._homes: list[list[str]] = []  # rank by rank, the nodes of its replicas
        self._replicas: list[list[Any]] = []
        self._made: list[Any] = []  # all that may be running
        self._copying: asyncio.Task[None] | None = None
        self.problems: list[str] = []  # why copies failed

    @property
    def step(self) -> int:
        """Of the newest copy that was whole; 0: there was none."""
        return 0 if self._whole is None else self._whole.state.step

    def begin(
        self, groups: Sequence[ActorGroup], state: RunState, folder: tempfile.TemporaryDirectory[str]
    ) -> None:
        """Let the ranks copy what they have, which is `state`, while the run goes on; see `settle`."""
        assert self._copying is None, "settle the copy before first"
        own = deepcopy(state)  # the run goes on writing into what the state refers to
        self._copying = asyncio.create_task(self._copy(groups, own, folder))
        # Its error counts as seen, also where nobody settles it.
        self._copying.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def settle(self) -> None:
        """Wait for the copy that is being made. One that fails is counted, and the one before stays."""
        if self._copying is None:
            return
        copying, self._copying = self._copying, None
        try:
            await copying
        except (RayError, WaitExpired) as error:
            self.problems.append(in_one_line(error))
            self._homes = []  # the next one has new replicas

    async def newest(self) -> tuple[RunState, Path] | None:
        """State and folder of the newest copy, if every rank's part is still there."""
        await self.settle()
        if self._whole is None or None in await self._sources(self._whole):
            return None
        return self._whole.state, Path(self._whole.folder.name)

    async def restore(self, groups: Sequence[ActorGroup]) -> None:
        """The newest copy into the ranks. Raises `LearnerFailed` where a part was lost meanwhile."""
        assert self._whole is not None, "ask for the newest first"
        sources = await self._sources(self._whole)
        if None in sources:
            raise LearnerFailed("the copy in memory was lost with its nodes")
        step = self._whole.state.step
        try:
            await self._each(_joined(groups), "restore_from", [(source, step) for source in sources])
        except RayError as error:  # such as of a replica that ended just now
            raise LearnerFailed(f"the copy in memory could not be read: {in_one_line(error)}") from error

    def close(self) -> None:
        """End the replicas."""
        if self._copying is not None:
            self._copying.cancel()
        self._end_all_but([])
        if self._whole is not None:
            self._whole.folder.cleanup()

    async def _copy(
        self, groups: Sequence[ActorGroup], state: RunState, folder: tempfile.TemporaryDirectory[str]
    ) -> None:
        ranks = _joined(groups)
        nodes = await ranks.call("node_id", timeout_s=self._timeout_s)
        homes = homes_of(nodes, other_nodes())
        if homes != self._homes:
            self._replicas = [[_start(node) for node in mine] for mine in homes]
            self._made += [replica for mine in self._replicas for replica in mine]
            self._homes = homes
        replicas = self._replicas
        await self._each(ranks, "copy_to", [(mine, state.step) for mine in replicas])
        before, self._whole = self._whole, _Copy(state, folder, replicas)
        if before is not None:
            before.folder.cleanup()
        kept = [replica for mine in replicas for replica in mine]
        self._end_all_but(kept)
        holders = ActorGroup(["a copy in memory"] * len(kept), kept)
        await holders.call("keep", state.step, timeout_s=self._timeout_s, what="forget the one before")

    async def _sources(self, copy: _Copy) -> list[Any | None]:
        """For each rank a replica that has its part."""
        step = copy.state.step
        return list(await asyncio.gather(*(_who_has(step, replicas) for replicas in copy.replicas)))

    async def _each(self, ranks: ActorGroup, method: str, arguments: Sequence[tuple]) -> None:
        await ranks.wait(ranks.send_each(method, arguments), method, self._timeout_s)

    def _end_all_but(self, kept: list[Any]) -> None:
        for replica in self._made:
            if replica not in kept:
                ray.kill(replica)
        self._made = kept


def _joined(groups: Sequence[ActorGroup]) -> ActorGroup:
    return sum(groups, ActorGroup([], []))


async def _who_has(step: int, replicas: list[Any]) -> Any | None:
    """The first to answer that it has a part of `step`; one whose node is silent does not."""

    async def ask(replica: Any) -> Any | None:
        with suppress(RayError):
            return replica if await replica.has.remote(step) else None
        return None

    asked = [asyncio.ensure_future(ask(replica)) for replica in replicas]
    try:
        with suppress(TimeoutError):
            for answer in asyncio.as_completed(asked, timeout=ANSWER_S):
                if (replica := await answer) is not None:
                    return replica
        return None
    finally:
        for task in asked:
            task.cancel()


def homes_of(nodes: Sequence[str], others: Sequence[str]) -> list[list[str]]:
    """For the rank on each of `nodes`: the nodes of its replicas, which are its own and, if there is any, another.

    That is the next one with ranks, else the first of `others`. Its own one alone would do where a process ends;
    the other one alone would not do where a node is lost, since the ranks of all nodes start again.
    """
    ring = list(dict.fromkeys(nodes))
    if len(ring) > 1:
        following = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
        return [[node, following[node]] for node in nodes]
    spare = next((node for node in others if node not in ring), None)
    return [[node] if spare is None else [node, spare] for node in nodes]


def other_nodes() -> list[str]:
    """The nodes of the cluster, the one with the most memory first."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: (-node["Resources"].get("memory", 0.0), node["NodeID"]))
    return [node["NodeID"] for node in alive]


def _start(node: str) -> Any:
    remote_class: Any = ray.remote(StateReplica)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return remote_class.options(num_cpus=0, scheduling_strategy=there).remote()
