"""The process group that weights travel in, and their way through it: place 0 sends, the others receive.

It stands apart from the default groups, which DeepSpeed and vLLM own. Its members meet in a store that the
driver holds, and there the driver says when a transfer is to be given up: every wait looks for that word, so
no member waits for a dead one until a time limit.

In: whole tensors, in order. Out: the same bytes in every receiver, bucket by bucket, with two buckets in memory on
either side: the sender gathers and packs one while the one before is on its way, the receiver loads one while the
next arrives. Nothing here knows what a learner or an engine is; the receiving end of vLLM stands in
`hpt_ray.rollout.weight_receiver`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, islice
from typing import Any

import torch
import torch.distributed as dist

from hpt_ray.cluster.meeting import Meeting, open_meeting, prove_membership
from hpt_ray.weight_sync.backends import BACKENDS
from hpt_ray.weight_sync.buckets import Buffers, TensorMeta, cut, pack, size_of, unpack

LOOK_EVERY_S = 0.1  # for the driver's word
POLL_EVERY_S = 0.0005


class TransferBroken(RuntimeError):
    """The transfer ended early because another member failed or the driver gave it up."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the members of one group meet, and what they then send over."""

    meeting: Meeting
    key: str  # of this group in the store
    world_size: int
    backend: str  # a name of `BACKENDS`
    timeout_s: float


class RendezvousPoint:
    """The driver's store: it opens a rendezvous and calls it off."""

    def __init__(self, host: str, *, timeout_s: float):
        self._meeting, held = open_meeting(host)
        self._timeout_s = timeout_s
        self._store = self._meeting.store(world_size=-1, timeout_s=timeout_s, held=held)
        self._count = 0

    def open(self, world_size: int, backend: str) -> Rendezvous:
        self._count += 1
        return Rendezvous(self._meeting, f"{self._count}", world_size, backend, self._timeout_s)

    def call_off(self, rendezvous: Rendezvous) -> None:
        """Every member that waits, or will wait, raises `TransferBroken`."""
        self._store.set(f"{rendezvous.key}/off", "")


class TransferGroup:
    """One member. Made when all members are there, or raises `TransferBroken`.

    `device` is the member's own; the attribute, where buffers must be.
    """

    def __init__(self, rendezvous: Rendezvous, rank: int, *, device: torch.device):
        self._backend = BACKENDS[rendezvous.backend]
        self.device = device if self._backend.on_gpu else torch.device("cpu")
        self._rendezvous, self._rank = rendezvous, rank
        self._pending: list[dist.Work] = []
        self._group: Any = None
        try:
            self._store = rendezvous.meeting.store(world_size=-1, timeout_s=rendezvous.timeout_s)
            self._meet()
            store = dist.PrefixStore(f"{rendezvous.key}/{rendezvous.backend}", self._store)
            self._group = self._backend.make(store, rank, rendezvous.world_size, rendezvous.timeout_s)
            if isinstance(
                self._group, dist.ProcessGroupGloo
            ):  # NCCL's connections have a secret of their own
                secret, size = rendezvous.meeting.secret, rendezvous.world_size
                prove_membership(self._exchange, secret, rank=rank, world_size=size)
        except RuntimeError as error:
            if self._group is not None:
                self.close()
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

    def _exchange(self, output: torch.Tensor, rows: torch.Tensor) -> None:
        self._pending.append(work := self._group.alltoall_base(output, rows, [], []))
        self.wait(work)

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
        if self._backend.abort is not None:
            self._backend.abort(self._group)
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


def send(
    group: TransferGroup,
    buckets: Sequence[list[TensorMeta]],
    tensors: Iterable[torch.Tensor],
    *,
    num_buffers: int = 2,
    copy: Sequence[torch.Tensor] | None = None,
) -> None:
    """Broadcast `tensors`, which stand in the order of `buckets`; returns when all have been sent.

    With `num_buffers=1` the packed bucket is the second in memory, next to tensors that exist only while
    they are read (ZeRO 3). `copy`, one buffer per bucket, takes what was sent.
    """
    stream = iter(tensors)
    buffers = Buffers(buckets, num_buffers, group.device)
    under_way: deque[dist.Work] = deque()
    for index, bucket in enumerate(buckets):
        whole = list(islice(stream, len(bucket)))  # reading may gather, beside what is under way
        if len(under_way) == num_buffers:
            group.wait(under_way.popleft())
        buffer = buffers.take(index)
        pack(whole, buffer)
        del whole
        under_way.append(group.broadcast(buffer))
        if copy is not None:
            copy[index].copy_(buffer)
        del buffer
    for work in under_way:
        group.wait(work)


def receive(
    group: TransferGroup,
    buckets: Sequence[list[TensorMeta]],
    load: Callable[[torch.Tensor, list[TensorMeta]], None],
) -> None:
    """Hand every bucket to `load`, in order, as bytes that are valid until it returns.

    Memory that `load` keeps a view of is left alone and replaced by new memory.
    """
    buffers = Buffers(buckets, 2, group.device)
    arriving = buffers.take(0)
    work = group.broadcast(arriving)
    for index, bucket in enumerate(buckets):
        group.wait(work)
        here = arriving
        if index + 1 < len(buckets):
            arriving = buffers.take(index + 1)
            work = group.broadcast(arriving)
        load(here, bucket)
        del here
        buffers.leave_if_shared(index)


class WeightSender:
    """Place 0 of the present transfer group, in a rank of the learner.

    Where asked it keeps a copy in host memory, for receivers that come up after the learner has stepped.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._group: TransferGroup | None = None
        self._buckets: list[list[TensorMeta]] = []
        self._copy: list[torch.Tensor] = []

    def join(self, rendezvous: Rendezvous) -> None:
        """Leave the group before this one, if any; returns when all members are there."""
        if self._group is not None:
            self._group.close()
            self._group = None
        self._group = TransferGroup(rendezvous, 0, device=self._device)

    def send(
        self,
        metas: list[TensorMeta],
        tensors: Iterable[torch.Tensor],
        *,
        bucket_bytes: int,
        num_buffers: int,
        keep: bool,
    ) -> None:
        """Broadcast `tensors`, which stand in the order of `metas`; with `keep`, also into host memory."""
        assert self._group is not None, "send before join"
        buckets = list(cut(metas, bucket_bytes))
        if keep and not self._copy:
            self._copy = [torch.empty(size_of(bucket), dtype=torch.uint8) for bucket in buckets]
        self._buckets = buckets
        send(self._group, buckets, tensors, num_buffers=num_buffers, copy=self._copy if keep else None)

    def send_copy(self) -> None:
        """Broadcast what the last `send` kept."""
        assert self._group is not None, "send before join"
        assert self._copy, "there is no copy to send"
        pairs = zip(self._copy, self._buckets, strict=True)
        named = chain.from_iterable(unpack(buffer, bucket) for buffer, bucket in pairs)
        send(self._group, self._buckets, (tensor for _, tensor in named))
