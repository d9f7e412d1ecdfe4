"""The gloo carrier: one private process group, the learner's rank 0 broadcasts, engines receive.

Needs torch only. The receiving half, registered with vLLM, is `hpt_ray.rollout.weight_receiver`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpt_ray.cluster.network import rendezvous_store
from hpt_ray.weight_sync.buckets import TensorMeta, cut, pack


class GlooGroup:
    """Sender (rank 0) and receivers. Apart from the default group, which vLLM and DeepSpeed own."""

    def __init__(self, host: str, port: int, *, rank: int, world_size: int, timeout_s: float):
        store = rendezvous_store(host, port, rank=rank, world_size=world_size, timeout_s=timeout_s)
        self._store = store  # the server must outlive the group
        self._group = dist.ProcessGroupGloo(
            dist.PrefixStore("weight_sync", store), rank, world_size, timedelta(seconds=timeout_s)
        )

    def broadcast(self, buffer: torch.Tensor) -> None:
        """Rank 0's bytes to all, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        self._group.broadcast([buffer], options).wait()  # type: ignore[attr-defined]


class GlooSender:
    """The learner's half. Only rank 0 holds the group; the other ranks help to gather."""

    def __init__(self, init_info: dict[str, Any]):
        self._bucket_bytes = init_info["bucket_bytes"]
        self._group = GlooGroup(
            init_info["host"],
            init_info["port"],
            rank=0,
            world_size=init_info["world_size"],
            timeout_s=init_info["timeout_s"],
        )

    def send(self, metas: list[TensorMeta], tensors: Iterable[torch.Tensor]) -> None:
        """Broadcast `tensors`, which stand in the order of `metas`."""
        stream: Iterator[torch.Tensor] = iter(tensors)
        for bucket in cut(metas, self._bucket_bytes):
            buffer = torch.empty(sum(meta.num_bytes for meta in bucket), dtype=torch.uint8)
            pack((next(stream) for _ in bucket), buffer)
            self._group.broadcast(buffer)
