"""Moving tensors through a `TransferGroup`, bucket by bucket, with two buckets in memory on either side.

The sender gathers and micro-batches a bucket while the one before is on its way; the receiver loads a bucket while
the next one arrives. Nothing here knows what a learner or an engine is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
import torch.distributed as dist

from hpt_ray.weight_sync.buckets import Buffers, TensorMeta, micro_batch
from hpt_ray.weight_sync.group import TransferGroup


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
        micro_batch(whole, buffer)
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
