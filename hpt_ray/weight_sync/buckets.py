"""Cutting a model's tensors into packed byte buckets, the same way on both sides.

Small tensors share a bucket, so a sync is a few large transfers and not hundreds of small ones. A
tensor keeps its dtype and its bytes; one that is larger than a bucket has one to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Name, dtype (as torch names it, e.g. `float32`) and full shape of one parameter."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        import torch

        return prod(self.shape) * getattr(torch, self.dtype).itemsize


def cut(metas: Iterable[TensorMeta], bucket_bytes: int) -> Iterator[list[TensorMeta]]:
    """Consecutive tensors, as many as fit into `bucket_bytes`, at least one."""
    bucket: list[TensorMeta] = []
    size = 0
    for meta in metas:
        if bucket and size + meta.num_bytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(meta)
        size += meta.num_bytes
    if bucket:
        yield bucket


def pack(tensors: Iterable[Any], buffer: Any) -> None:
    """Write the tensors' bytes into `buffer` (uint8, of the bucket's size) one after another."""
    import torch

    offset = 0
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        buffer[offset : offset + flat.numel()].copy_(flat)
        offset += flat.numel()
    assert offset == buffer.numel(), f"bucket of {buffer.numel()} bytes got {offset}"


def unpack(buffer: Any, bucket: list[TensorMeta]) -> Iterator[tuple[str, Any]]:
    """The named tensors of a bucket, as views of `buffer`."""
    import torch

    offset = 0
    for meta in bucket:
        size = meta.num_bytes
        chunk = buffer[offset : offset + size]
        dtype = getattr(torch, meta.dtype)
        # A view of another dtype must start at a multiple of its size.
        chunk = chunk.clone() if chunk.storage_offset() % dtype.itemsize else chunk
        yield meta.name, chunk.view(dtype).view(meta.shape)
        offset += size
