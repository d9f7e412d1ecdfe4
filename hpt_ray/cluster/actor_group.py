"""A group of actors of one kind: call them all, wait with a limit, say who did not answer.

Every remote wait of the system goes through `wait_all` or `first_of`, so no wait is without a limit
and none ends without a name.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError

from hpt_ray.errors import WaitExpired

LOOK_EVERY_S = 2.0  # whether all of a group are there
DEATH_IS_KNOWN_S = 10.0  # how long after an error it is clear whether a process has ended


async def wait_all(refs: Sequence[Any], *, names: Sequence[str], what: str, timeout_s: float) -> list[Any]:
    """The results of `refs`, in order. The first failure ends the wait with that failure.

    Raises `WaitExpired` naming those of `names` that had not answered after `timeout_s` seconds.
    """
    tasks = [asyncio.ensure_future(_result(ref)) for ref in refs]
    try:
        done, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if pending:
            late = [name for name, task in zip(names, tasks, strict=True) if task in pending]
            raise WaitExpired(f"{', '.join(late)} did not finish '{what}' within {timeout_s:.0f} s")
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


async def _result(ref: Any) -> Any:
    return await ref


async def _look_with(check: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        check()


class ActorGroup:
    """Actors of one kind, by name (`rollout-0`, `rollout-1`, …). `make(i)` starts actor i anew."""

    def __init__(self, names: list[str], actors: list[Any], make: Callable[[int], Any] | None = None):
        self.names = names
        self.actors = actors
        self._make = make

    def __len__(self) -> int:
        return len(self.actors)

    def __getitem__(self, where: slice) -> ActorGroup:
        """Some of them, as a group."""
        return ActorGroup(self.names[where], self.actors[where])

    def __add__(self, other: ActorGroup) -> ActorGroup:
        """All of both, to be called at the same time."""
        return ActorGroup(self.names + other.names, self.actors + other.actors)

    def send(self, method: str, *args: Any) -> list[Any]:
        """Call `method` with the same arguments on all; the references, in order."""
        return [getattr(actor, method).remote(*args) for actor in self.actors]

    def send_each(self, method: str, arguments: Sequence[tuple]) -> list[Any]:
        """Call `method` on actor i with `arguments[i]`."""
        return [getattr(a, method).remote(*args) for a, args in zip(self.actors, arguments, strict=True)]

    async def wait(self, refs: Sequence[Any], what: str, timeout_s: float) -> list[Any]:
        return await wait_all(refs, names=self.names, what=what, timeout_s=timeout_s)

    async def call(self, method: str, *args: Any, timeout_s: float, what: str | None = None) -> list[Any]:
        return await self.wait(self.send(method, *args), what or method, timeout_s)

    async def lost(self, error: BaseException, timeout_s: float = DEATH_IS_KNOWN_S) -> list[str]:
        """The names of those that are gone or frozen: whom `error` is about, else whose process has ended.

        The latter as far as it is known within the time.
        """
        if isinstance(error, RayActorError):
            named = zip(self.names, self.actors, strict=True)
            if lost := [name for name, actor in named if actor._actor_id.hex() == error.actor_id]:
                return lost
        refs = [actor.__ray_ready__.remote() for actor in self.actors]
        tasks = [asyncio.ensure_future(_result(ref)) for ref in refs]
        done, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in pending:
            task.cancel()
        dead = {task for task in done if isinstance(task.exception(), RayActorError)}
        return [name for name, task in zip(self.names, tasks, strict=True) if task in dead]

    @asynccontextmanager
    async def watched(self, check: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Within it, whatever is waited for, the end of one of their processes is raised soon: a `RayActorError`. So is
        what `check` raises."""
        try:
            async with asyncio.TaskGroup() as tasks:
                looking = [tasks.create_task(self._look()), tasks.create_task(_look_with(check))]
                yield
                for task in looking:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            # One that is busy answers when it is not, or ends; whoever watches has a limit.
            await self.call("__ray_ready__", timeout_s=math.inf)

    def restart(self) -> None:
        """End all actors and start new ones in their place: whoever holds the group calls the new ones."""
        assert self._make is not None, "nobody said how"
        self.kill()
        self.actors[:] = [self._make(i) for i in range(len(self.actors))]

    def kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
