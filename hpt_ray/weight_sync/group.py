"""The process group that weights travel in: place 0 sends, the others receive, over gloo or NCCL.

It stands apart from the default groups, which DeepSpeed and vLLM own. Its members meet in a store that the
driver holds, and there the driver says when a transfer is to be given up: every wait looks for that word, so
no member waits for a dead one until a time limit. Needs torch only.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpt_ray.cluster.network import listen, rendezvous_store

CONNECT_LIMIT_S = 10.0  # for members that are all there
LOOK_EVERY_S = 0.1  # for the driver's word
POLL_EVERY_S = 0.0005


class TransferBroken(RuntimeError):
    """The transfer ended early because another member failed or the driver gave it up."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the members of one group meet, and which kind of group it is."""

    host: str
    port: int
    key: str  # of this group in the store
    world_size: int
    backend: str  # "gloo" or "nccl"
    timeout_s: float


class RendezvousPoint:
    """The driver's store: it opens meetings and calls them off."""

    def __init__(self, host: str, *, timeout_s: float):
        listener = listen(host)
        self._host, self._port, self._timeout_s = host, listener.getsockname()[1], timeout_s
        self._store = rendezvous_store(host, self._port, world_size=1, timeout_s=timeout_s, listener=listener)
        self._count = 0

    def open(self, world_size: int, backend: str) -> Rendezvous:
        self._count += 1
        return Rendezvous(self._host, self._port, f"{self._count}", world_size, backend, self._timeout_s)

    def call_off(self, rendezvous: Rendezvous) -> None:
        """Every member that waits, or will wait, raises `TransferBroken`."""
        self._store.set(f"{rendezvous.key}/off", "")


class TransferGroup:
    """One member. Made when all members are there, or raises `TransferBroken`.

    `device` is where buffers must be: the CPU for gloo, the member's GPU for NCCL.
    """

    def __init__(self, rendezvous: Rendezvous, rank: int, *, device: torch.device):
        self.device = torch.device("cpu") if rendezvous.backend == "gloo" else device
        self._rendezvous, self._rank = rendezvous, rank
        self._pending: list[dist.Work] = []
        try:
            self._store = rendezvous_store(
                rendezvous.host, rendezvous.port, world_size=1, timeout_s=rendezvous.timeout_s
            )
            self._meet()
            self._group = self._open()
        except RuntimeError as error:
            raise TransferBroken(str(error)) from error

    def _meet(self) -> None:
        """Wait for everybody here, where it can be called off; opening the group then takes no time."""
        rendezvous = self._rendezvous
        self._store.set(f"{rendezvous.key}/{self._rank}", "")
        everyone = [f"{rendezvous.key}/{rank}" for rank in range(rendezvous.world_size)]
        deadline = time.monotonic() + rendezvous.timeout_s
        while not self._store.check(everyone):
            self._look()
            if time.monotonic() > deadline:
                raise TransferBroken(f"not everybody came within {rendezvous.timeout_s:.0f} s")
            time.sleep(0.01)

    def _open(self) -> Any:
        rendezvous = self._rendezvous
        store = dist.PrefixStore(f"{rendezvous.key}/{rendezvous.backend}", self._store)
        if rendezvous.backend == "gloo":
            limit = timedelta(seconds=CONNECT_LIMIT_S)
            return dist.ProcessGroupGloo(store, self._rank, rendezvous.world_size, limit)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=rendezvous.timeout_s)
        # NCCL's watchdog would end the whole process when another member dies.
        before = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING")
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        try:
            return dist.ProcessGroupNCCL(store, self._rank, rendezvous.world_size, options)
        finally:
            del os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]
            if before is not None:
                os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = before

    def broadcast(self, buffer: torch.Tensor) -> dist.Work:
        """Start to send place 0's bytes to all, in place; `wait` for it before the buffer is used."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        options.timeout = timedelta(seconds=self._rendezvous.timeout_s)
        work = self._group.broadcast([buffer], options)
        self._pending.append(work)
        return work

    def wait(self, work: dist.Work) -> None:
        """Until this broadcast is done. Raises `TransferBroken` when it can't be, or is called off."""
        next_look = time.monotonic() + LOOK_EVERY_S
        while not work.is_completed():
            if time.monotonic() > next_look:
                self._look()
                next_look += LOOK_EVERY_S
            time.sleep(POLL_EVERY_S)
        self._pending.remove(work)
        try:
            work.wait()
        except RuntimeError as error:
            raise TransferBroken(str(error)) from error

    def _look(self) -> None:
        try:
            called_off = self._store.check([f"{self._rendezvous.key}/off"])
        except RuntimeError as error:
            raise TransferBroken(f"the driver does not answer: {error}") from error
        if called_off:
            raise TransferBroken("the driver called it off")

    def close(self) -> None:
        """Leave the group, also in the middle of a broadcast, without waiting for anybody.

        gloo can't give up a broadcast whose peer is there and silent: it is left to a thread until that peer
        is killed or the time limit passes, as taking down the group would block.
        """
        if self._rendezvous.backend == "nccl":
            self._group.abort()
        threading.Thread(target=_outlive, args=(self._group, self._pending), daemon=True).start()
        del self._group


def _outlive(group: Any, pending: list[dist.Work]) -> None:
    """Hold a group until nothing is under way in it."""
    while pending:
        try:
            pending.pop().wait()
        except RuntimeError:
            continue  # nobody is interested any more
    del group
