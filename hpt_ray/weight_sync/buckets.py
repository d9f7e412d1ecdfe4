"""Cutting a model's tensors into packed byte buckets, the same way on both sides.

Small tensors share a bucket, so a sync is a few large transfers and not hundreds of small ones. A
tensor keeps its dtype and its bytes; one that is larger than a bucket has one to itself. A few buffers,
used in turn, hold the buckets of a transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


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


def cut(
    tensors: Iterable[T], bucket_bytes: int, num_bytes: Callable[[T], int] = attrgetter("num_bytes")
) -> Iterator[list[T]]:
    """Consecutive tensors (by default `TensorMeta`), as many as fit into `bucket_bytes`, at least one."""
    bucket: list[T] = []
    size = 0
    for tensor in tensors:
        if bucket and size + num_bytes(tensor) > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += num_bytes(tensor)
    if bucket:
        yield bucket


def size_of(bucket: Iterable[TensorMeta]) -> int:
    """Bytes of all tensors of a bucket."""
    return sum(meta.num_bytes for meta in bucket)


def pack(tensors: Iterable[Any], buffer: Any) -> None:
    """Write the tensors' bytes into `buffer` (uint8, of the bucket's size) one after another."""
    import torch

    offset = 0
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        buffer[offset : offset + flat.numel()].copy_(flat)
        offset += flat.numel()
    assert offset == buffer.numel(), f"bucket of {buffer.numel()} bytes got {offset}"


def unpack(buffer: Any, bucket: Iterable[TensorMeta]) -> Iterator[tuple[str, Any]]:
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


class Buffers:
    """`num_buffers` byte buffers that hold the buckets of one transfer in turn, each as large as it must be."""

    def __init__(self, buckets: Sequence[list[TensorMeta]], num_buffers: int, device: Any):
        self._sizes = [size_of(bucket) for bucket in buckets]
        self._device = device
        self._buffers: list[Any] = [None] * num_buffers
        self.num_allocated = 0

    def take(self, index: int) -> Any:
        """A buffer for bucket `index`, uint8 of its size. The bucket `num_buffers` before it is lost."""
        import torch

        place = index % len(self._buffers)
        if self._buffers[place] is None:
            largest = max(self._sizes[place :: len(self._buffers)])
            self._buffers[place] = torch.empty(largest, dtype=torch.uint8, device=self._device)
            self.num_allocated += 1
        return self._buffers[place][: self._sizes[index]]

    def leave_if_shared(self, index: int) -> None:
        """Where another tensor still has a view of bucket `index`, leave it that memory; take new next time."""
        import torch

        place = index % len(self._buffers)
        storage = self._buffers[place].untyped_storage()  # counts as one holder, the buffer as the other
        if torch._C._storage_Use_Count(storage._cdata) > 2:
            self._buffers[place] = None
