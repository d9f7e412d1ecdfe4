"""Packed attention against attention of every sample by itself, written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt_ray.learner import attention
from hpt_ray.learner.attention import (
    MAX_PADDING,
    MAX_PADDING_TOKENS,
    Segments,
    has_kernel,
    segment_attention,
)

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=12)


def draw(num_tokens: int, num_heads: int, seed: int) -> torch.Tensor:
    """[1, heads, T, 4] with gradient."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, num_heads, num_tokens, 4)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def per_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scaling: float,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ · scaling) v of each sample alone, under a causal mask; [1, T, heads, d]."""
    groups = query.shape[1] // key.shape[1]
    samples, begin = [], 0
    for length in lengths:
        q, k, v = (x[0, :, begin : begin + length] for x in (query, key, value))
        k, v = (x.repeat_interleave(groups, dim=0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * scaling
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        back = torch.arange(length)[:, None] - torch.arange(length)  # how far from a token the other one is
        scores = scores.masked_fill((back < 0) | (back >= (sliding_window or length)), -math.inf)
        weights = scores.exp()
        taken = weights.sum(-1, keepdim=True)
        if s_aux is not None:
            taken = taken + s_aux.exp()[:, None, None]
        samples.append((weights / taken) @ v)
        begin += length
    return torch.cat(samples, dim=1).transpose(0, 1)[None]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@settings(deadline=None, max_examples=25)
@given(lengths=LENGTHS)
def test_values_and_gradients_equal_those_of_samples_alone(num_kv_heads, lengths):
    tensors = [draw(sum(lengths), heads, seed) for seed, heads in enumerate((4, num_kv_heads, num_kv_heads))]
    segments = Segments.from_lengths(np.array(lengths, np.int32))
    mine, weights = segment_attention(torch.nn.Module(), *tensors, None, segments=segments, scaling=0.3)
    theirs = per_sample(*tensors, lengths, scaling=0.3)
    assert weights is None
    assert (mine - theirs).abs().max() < 1e-12
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((mine * direction).sum(), tensors),
        torch.autograd.grad((theirs * direction).sum(), tensors),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-12


def test_default_scaling_is_one_over_root_of_head_size():
    tensors = [draw(5, 2, seed) for seed in range(3)]
    mine, _ = segment_attention(torch.nn.Module(), *tensors, None, segments=Segments.from_lengths([2, 3]))
    assert torch.allclose(mine, per_sample(*tensors, [2, 3], scaling=0.5), rtol=0, atol=1e-12)


@given(lengths=LENGTHS)
def test_blocks_hold_every_token_once_and_pad_little(lengths):
    segments = Segments.from_lengths(np.array(lengths))
    packed = torch.cat([block.packed for block in segments.blocks])
    assert sorted(packed.tolist()) == list(range(sum(lengths)))
    for block in segments.blocks:
        longest = block.gather.shape[1]
        shortest = torch.bincount(block.flat // longest).min()
        assert longest - shortest <= max(MAX_PADDING_TOKENS, MAX_PADDING * longest)


@pytest.mark.parametrize(
    "kind",
    [
        {"sliding_window": 4},
        {"sliding_window": 40},
        {"softcap": 1.5},
        {"s_aux": [0.3, -1.0, 2.0, 0.0]},
        {"sliding_window": 3, "softcap": 0.7, "s_aux": [1.0, 0.0, 0.0, 0.5]},
    ],
)
def test_windows_soft_caps_and_sinks_equal_those_written_out(kind):
    if "s_aux" in kind:
        kind = kind | {"s_aux": torch.tensor(kind["s_aux"], dtype=torch.float64, requires_grad=True)}
    lengths = [17, 5, 1, 16, 40]
    tensors = [draw(sum(lengths), heads, seed) for seed, heads in enumerate((4, 2, 2))]
    segments = Segments.from_lengths(lengths)
    mine, _ = segment_attention(torch.nn.Module(), *tensors, None, segments=segments, scaling=0.9, **kind)
    theirs = per_sample(*tensors, lengths, scaling=0.9, **kind)
    assert (mine - theirs).abs().max() < 1e-12
    leaves = [*tensors, *([kind["s_aux"]] if "s_aux" in kind else [])]
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((mine * direction).sum(), leaves),
        torch.autograd.grad((theirs * direction).sum(), leaves),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-12


def by_its_documentation(q, k, v, bounds, bounds_k, longest, longest_k, *, scale, window_size, enable_gqa):
    """What torch says of `varlen_attn`, which has kernels on GPUs only; q [T, heads, d]."""
    assert (bounds is bounds_k, longest, bounds.dtype) == (True, longest_k, torch.int32)
    lengths = bounds.diff().tolist()
    assert longest == max(lengths)
    assert enable_gqa == (q.shape[1] != k.shape[1])
    left, right = window_size
    assert right == 0, "causal"
    tensors = [x.transpose(0, 1)[None] for x in (q, k, v)]
    return per_sample(*tensors, lengths, scale, sliding_window=None if left < 0 else left + 1)[0]


@pytest.mark.parametrize("sliding_window", [None, 1, 16])
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_torchs_kernel_is_asked_for_the_same(num_kv_heads, sliding_window, monkeypatch):
    lengths = [7, 40, 1]
    tensors = [draw(sum(lengths), heads, seed) for seed, heads in enumerate((4, num_kv_heads, num_kv_heads))]
    options = {"segments": Segments.from_lengths(lengths), "scaling": 0.3, "sliding_window": sliding_window}
    ours, _ = segment_attention(torch.nn.Module(), *tensors, None, **options)
    monkeypatch.setattr(attention, "has_kernel", lambda query, value: True)
    monkeypatch.setattr(attention, "varlen_attn", by_its_documentation)
    its, _ = segment_attention(torch.nn.Module(), *tensors, None, **options)
    assert its.shape == ours.shape
    assert (its - ours).abs().max() < 1e-12


def test_torchs_kernel_takes_and_gives_the_right_shapes(monkeypatch):
    """On the device without values, where torch checks arguments and shapes."""
    monkeypatch.setattr(attention, "has_kernel", lambda query, value: True)
    query, key, value = (
        torch.empty(1, heads, 50, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
        for heads in (8, 2, 2)
    )
    segments = Segments.from_lengths([20, 30], "meta")
    out, _ = segment_attention(
        torch.nn.Module(), query, key, value, None, segments=segments, scaling=0.3, sliding_window=16
    )
    assert (out.shape, out.dtype) == ((1, 50, 8, 64), torch.bfloat16)
    out.float().sum().backward()
    assert (query.grad.shape, key.grad.shape) == (query.shape, key.shape)


def test_the_cpu_has_no_kernel():
    query = torch.empty(5, 2, 64, dtype=torch.bfloat16)
    assert not has_kernel(query, query)
