"""Processes that end while others count on them, and how soon that is known. Real actors, without a model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from hpt_ray.checkpoint.replicas import Replicas
from hpt_ray.checkpoint.state import RunState
from hpt_ray.cluster import actor_group
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.errors import LearnerFailed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LIMIT_S = 60.0


class Rank:
    """As far as `Replicas` knows one; its replica ends just before it is read."""

    def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def copy_to(self, replicas: list[Any], step: int) -> None:
        ray.get([replica.put.remote(step, "random", 1) for replica in replicas])

    def restore_from(self, replica: Any, step: int) -> None:
        ray.kill(replica)
        ray.get(replica.get.remote(step, "random"))


@pytest.fixture
def ranks(ray_cluster):
    make: Any = ray.remote(Rank)
    group = ActorGroup(["learner-0", "learner-1"], [make.options(num_cpus=0).remote() for _ in range(2)])
    yield group
    group.kill()


def test_the_end_of_a_rank_is_known_whatever_is_waited_for(ranks, monkeypatch):
    monkeypatch.setattr(actor_group, "LOOK_EVERY_S", 0.1)

    async def wait(error: Exception | None = None) -> None:
        async with ranks.watched():
            if error is not None:
                raise error
            await asyncio.sleep(0.5)

    async def loses_one() -> None:
        async with ranks.watched():
            ray.kill(ranks.actors[1])
            await asyncio.sleep(LIMIT_S)

    asyncio.run(wait())
    with pytest.raises(KeyError, match="ours"):
        asyncio.run(wait(KeyError("ours")))
    with pytest.raises(RayActorError) as raised:
        asyncio.run(loses_one())
    assert asyncio.run(ranks.lost(raised.value, LIMIT_S)) == ["learner-1"]


def test_a_copy_that_is_lost_while_it_is_read_is_one_more_loss_and_not_the_end(ranks, tmp_path: Path):
    """The driver starts the ranks again then, from what is left."""
    replicas = Replicas(timeout_s=LIMIT_S)

    async def copy_and_restore() -> None:
        state = RunState(step=1, version=1, sampler={})
        replicas.begin([ranks], state, TemporaryDirectory(dir=tmp_path))
        assert await replicas.newest() is not None
        with pytest.raises(LearnerFailed, match="copy in memory could not be read"):
            await replicas.restore([ranks])
        assert await replicas.newest() is None

    try:
        asyncio.run(copy_and_restore())
    finally:
        replicas.close()
