"""Buckets: the same cut on both sides, every byte back where it was."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hpt_ray.weight_sync.buckets import TensorMeta, cut, pack, unpack

SHAPES = st.lists(
    st.tuples(
        st.sampled_from(["float32", "bfloat16", "float16", "int8"]),
        st.lists(st.integers(1, 7), min_size=0, max_size=3),
    ),
    min_size=1,
    max_size=12,
)


@given(shapes=SHAPES, bucket_bytes=st.integers(1, 600))
def test_round_trip_is_exact(shapes, bucket_bytes: int) -> None:
    metas = [TensorMeta(f"w{i}", dtype, tuple(shape)) for i, (dtype, shape) in enumerate(shapes)]
    tensors = [
        torch.randint(0, 256, (meta.num_bytes,), dtype=torch.uint8)
        .view(getattr(torch, meta.dtype))
        .view(meta.shape)
        for meta in metas
    ]
    stream = iter(tensors)
    back = {}
    for bucket in cut(metas, bucket_bytes):
        assert len(bucket) == 1 or sum(meta.num_bytes for meta in bucket) <= bucket_bytes
        buffer = torch.empty(sum(meta.num_bytes for meta in bucket), dtype=torch.uint8)
        pack((next(stream) for _ in bucket), buffer)
        back |= dict(unpack(buffer, bucket))
    assert list(back) == [meta.name for meta in metas]
    for meta, tensor in zip(metas, tensors, strict=True):
        assert back[meta.name].shape == tensor.shape
        assert torch.equal(back[meta.name].view(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
