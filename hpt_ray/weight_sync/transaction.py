"""One weight sync: begin · send and receive · commit, with a version and a time limit.

All workers get all weights or the sync raises; a worker that did not commit a version does not serve
it, because a rollout carries the version its engine last committed. At the start both sides join one
group in which the learner's rank 0 is place 0 and engine i takes the places from 1 + i · workers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from hpt_ray.cluster.groups import ActorGroup
from hpt_ray.config.schema import WeightSyncConfig
from hpt_ray.weight_sync.buckets import TensorMeta


@dataclass(frozen=True)
class SyncReport:
    """What one sync moved and how long it took."""

    version: int
    num_tensors: int
    num_bytes: int
    seconds: float


class WeightSync:
    """The path from the learner ranks to the rollout workers."""

    def __init__(self, learners: ActorGroup, workers: ActorGroup, config: WeightSyncConfig, carrier: str):
        self._learners, self._workers = learners, workers
        self._config, self._carrier = config, carrier
        self._metas: list[TensorMeta] = []
        self._names: set[str] = set()
        self._is_first = True  # the first sync checks every name one by one

    async def connect(self, host: str, port: int, *, workers_per_engine: int) -> None:
        """Form the group. `host` is the address of learner rank 0."""
        limit = self._config.timeout_s
        self._metas = (await self._learners.call("weight_metas", timeout_s=limit, what="list weights"))[0]
        self._names = {meta.name for meta in self._metas}
        world_size = 1 + workers_per_engine * len(self._workers)
        common: dict[str, Any] = {"world_size": world_size}
        bucket_bytes = int(self._config.bucket_mb * 2**20)
        if self._carrier == "gloo":
            common |= {"host": host, "port": port, "bucket_bytes": bucket_bytes, "timeout_s": limit}
        else:
            common |= {"master_address": host, "master_port": port, "packed": True}
            common |= {"packed_buffer_size_bytes": bucket_bytes, "packed_num_buffers": 2}
        offsets = [{**common, "rank_offset": 1 + i * workers_per_engine} for i in range(len(self._workers))]
        sending = self._learners.send("connect", self._carrier, common)
        receiving = self._workers.send_each("connect", [(info,) for info in offsets])
        await self._both(sending, receiving, "join the weight-transfer group")

    async def push(self, version: int) -> SyncReport:
        """Make `version` (the learner's weights as they are) what every worker serves.

        Raises `WaitExpired` past the limit and `RuntimeError` where names that were sent did not arrive.
        """
        begin = time.perf_counter()
        limit = self._config.timeout_s
        first, self._is_first = self._is_first, False
        await self._workers.call("begin_update", first, timeout_s=limit, what="begin a weight update")
        update = {
            "names": [meta.name for meta in self._metas],
            "dtype_names": [meta.dtype for meta in self._metas],
            "shapes": [list(meta.shape) for meta in self._metas],
        }
        receiving = self._workers.send("receive", update)
        sending = self._learners.send("send_weights")
        await self._both(sending, receiving, f"transfer weights of version {version}")
        received = await self._workers.call("commit_update", version, timeout_s=limit, what="commit weights")
        for name, names in zip(self._workers.names, received, strict=True):
            if set(names) != self._names:
                raise RuntimeError(
                    f"{name} committed version {version} with {len(names)} of {len(self._names)} weights; "
                    f"missing: {sorted(self._names - set(names))[:5]}"
                )
        num_bytes = sum(meta.num_bytes for meta in self._metas)
        return SyncReport(version, len(self._metas), num_bytes, time.perf_counter() - begin)

    async def _both(self, sending: list, receiving: list, what: str) -> None:
        everyone = ActorGroup(self._learners.names + self._workers.names, [])
        await everyone.wait([*sending, *receiving], what, self._config.timeout_s)
