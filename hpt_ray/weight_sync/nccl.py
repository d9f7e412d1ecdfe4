"""The NCCL carrier: vLLM's own engine on the receiving side, its packed producer on this one.

Written against vLLM's interface; needs GPUs on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from hpt_ray.weight_sync.buckets import TensorMeta


class NcclSender:
    """The learner's rank 0 in vLLM's NCCL weight-transfer group."""

    def __init__(self, init_info: dict[str, Any]):
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        self._bucket_bytes = init_info["packed_buffer_size_bytes"]
        self._num_buffers = init_info["packed_num_buffers"]
        self._group = trainer_init(SimpleNamespace(**init_info))

    def send(self, metas: list[TensorMeta], tensors: Iterable[torch.Tensor]) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        names = (meta.name for meta in metas)
        packed_nccl_broadcast_producer(
            iterator=zip(names, tensors, strict=True),
            group=self._group,
            src=0,
            post_iter_func=lambda item: item[1].contiguous(),
            buffer_size_bytes=self._bucket_bytes,
            num_buffers=self._num_buffers,
        )
