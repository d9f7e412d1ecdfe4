"""Packed attention against attention of every sample by itself, written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt_ray.learner.attention import MAX_PADDING, MAX_PADDING_TOKENS, Segments, segment_attention

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=12)


def draw(num_tokens: int, num_heads: int, seed: int) -> torch.Tensor:
    """[1, heads, T, 4] with gradient."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, num_heads, num_tokens, 4)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def per_sample(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float
) -> torch.Tensor:
    """softmax(q kᵀ · scaling) v of each sample alone, under a causal mask; [1, T, heads, d]."""
    groups = query.shape[1] // key.shape[1]
    samples, begin = [], 0
    for length in lengths:
        q, k, v = (x[0, :, begin : begin + length] for x in (query, key, value))
        k, v = (x.repeat_interleave(groups, dim=0) for x in (k, v))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(1, 2) * scaling).masked_fill(future, -math.inf)
        samples.append(scores.softmax(-1) @ v)
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
    assert sorted(packed.tolist()) == list(range(sum(lengths))) == list(range(segments.num_tokens))
    for block in segments.blocks:
        longest = block.gather.shape[1]
        shortest = torch.bincount(block.flat // longest).min()
        assert longest - shortest <= max(MAX_PADDING_TOKENS, MAX_PADDING * longest)


def test_a_sliding_window_is_refused_only_where_it_would_matter():
    tensors = [draw(9, 1, seed) for seed in range(3)]
    segments = Segments.from_lengths([5, 4])
    segment_attention(torch.nn.Module(), *tensors, None, segments=segments, sliding_window=5)
    with pytest.raises(ValueError, match="sample of 5 tokens is longer than the model's window of 4"):
        segment_attention(torch.nn.Module(), *tensors, None, segments=segments, sliding_window=4)


@pytest.mark.parametrize("extra", [{"softcap": 50.0}, {"s_aux": torch.zeros(1)}], ids=["softcap", "sinks"])
def test_other_kinds_of_attention_are_refused(extra):
    tensors = [draw(3, 1, seed) for seed in range(3)]
    with pytest.raises(ValueError, match=next(iter(extra))):
        segment_attention(torch.nn.Module(), *tensors, None, segments=Segments.from_lengths([3]), **extra)
