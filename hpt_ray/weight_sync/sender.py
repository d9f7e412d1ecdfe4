"""The sending end of the weight sync, in the learner's rank 0.

In: the learner's whole tensors, in order. Out: the same bytes in every receiver. Where asked it keeps a copy in
host memory, for receivers that come up after the learner has stepped. The receiving end is vLLM's and stands in
`hpt_ray.rollout.weight_receiver`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch

from hpt_ray.weight_sync.buckets import TensorMeta, cut, size_of, unpack
from hpt_ray.weight_sync.group import Rendezvous, TransferGroup
from hpt_ray.weight_sync.transfer import send


class WeightSender:
    """Place 0 of the present transfer group."""

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
