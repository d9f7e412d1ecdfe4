"""Who has the GPUs: always both sides, or the rollout workers and the learner ranks in turns.

With `cluster.colocate` a rank and an engine stand on the same GPU, and there is room for one at a time:

    generate ─▶ engines sleep ─▶ ranks reload ─▶ learn ─▶ ranks offload ─▶ weights wake, sync, cache wakes ─▶

In: the groups of a step and the new version. Out: the same groups, when the learner may have them, and the
same sync. Without colocation nothing here waits for anything. Parameters of the learner stay on the GPU in both
turns; what moves is the rest (`hpt_ray.learner.deepspeed_state`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.rollout.engine_group import EngineGroup
from hpt_ray.types import Group


class Turns:
    """The two sides. On separate GPUs (`shared` false), or without rollout workers, each turn is anytime."""

    def __init__(self, learners: ActorGroup, engines: EngineGroup | None, *, shared: bool, timeout_s: float):
        self._learners, self._engines, self._timeout_s = learners, engines, timeout_s
        self.shared = shared and engines is not None

    async def groups(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """The groups for the learner: as they come, or all of them once the engines sleep."""
        if not self.shared:
            async for group in groups:
                yield group
            return
        collected = [group async for group in groups]
        await self.free_engines()
        await self._learners.call("reload", timeout_s=self._timeout_s, what="reload the optimizer state")
        for group in collected:
            yield group

    async def free_engines(self) -> None:
        """The engines give up their memory, until the next push. Nobody may be waiting for rollouts."""
        if self.shared:
            assert self._engines is not None
            await self._engines.sleep()

    async def push(self, version: int) -> float:
        """The learner's weights, under `version`, to every rollout worker; seconds the sync took."""
        if self._engines is None:
            return 0.0
        if self.shared:
            await self._learners.call(
                "offload", timeout_s=self._timeout_s, what="offload the optimizer state"
            )
        return await self._engines.push(version)
