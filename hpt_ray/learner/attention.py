"""Exact attention over packed samples on any device, without a T × T mask and without the package flash-attn.

Samples lie end to end in one sequence of T tokens, and a token may see its own sample only. All layers but
attention work on the packed sequence. In bfloat16 on a GPU torch's flash attention does too, in one call a layer.
Elsewhere queries, keys and values are laid out as [samples, longest],
causal attention runs on that, and the result is laid back. Padding stands at the end of each sample,
where causal attention never looks, so it changes nothing. Samples of similar length share a block, so
that one long sample does not pad many short ones. Sliding windows go in as a mask; soft-capped scores and
attention sinks, for which torch has no fused attention, are written out, which takes memory of the square of a
sample's length.

Registered with transformers as attention implementation `segments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from hpt_ray.algorithms.batch import on_device
from hpt_ray.learner.batch_invariant import NAME as BATCH_INVARIANT
from hpt_ray.learner.batch_invariant import causal_attention
from hpt_ray.learner.sequence_parallel import ALONE, SequenceRanks

NAME = "segments"
# A sample joins a block if it is at most this share, or this many tokens, shorter than the longest there:
# little padding for long samples, few blocks for short ones.
MAX_PADDING = 0.2
MAX_PADDING_TOKENS = 32
MOST_HEAD = 256  # numbers of one head, for torch's flash attention


@dataclass(frozen=True)
class Block:
    """Samples that are attended together.

    `gather` [samples, longest]: position in the packed sequence (padding repeats the sample's first).
    `flat` [tokens]: which entries of the flattened block are real; `packed` [tokens]: where they belong.
    """

    gather: torch.Tensor
    flat: torch.Tensor
    packed: torch.Tensor


@dataclass(frozen=True)
class Segments:
    """How a packed sequence divides into samples, for `segment_attention`. `lengths` [samples] int64."""

    lengths: np.ndarray
    device: torch.device | str
    ranks: SequenceRanks = ALONE

    @classmethod
    def from_lengths(
        cls, sample_lengths: np.ndarray, device: torch.device | str = "cpu", ranks: SequenceRanks = ALONE
    ) -> Segments:
        """`sample_lengths` [samples]: tokens of each sample, in packed order. Padding is one more of them."""
        lengths = np.asarray(sample_lengths, np.int64)
        padding = ranks.padding(int(lengths.sum()))
        return cls(np.append(lengths, padding) if padding else lengths, device, ranks)

    @cached_property
    def bounds(self) -> torch.Tensor:
        """[samples + 1] int32: where each sample begins, and where the last one ends."""
        return on_device(np.cumsum([0, *self.lengths], dtype=np.int32), self.device)

    @cached_property
    def blocks(self) -> list[Block]:
        lengths = self.lengths
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(lengths, kind="stable")[::-1]
        blocks: list[Block] = []
        first = 0
        while first < len(order):
            longest = lengths[order[first]]
            last = first + 1
            shortest = longest - max(MAX_PADDING_TOKENS, int(MAX_PADDING * longest))
            while last < len(order) and lengths[order[last]] >= shortest:
                last += 1
            samples = order[first:last]
            offsets = np.arange(longest)
            real = offsets[None, :] < lengths[samples, None]
            gather = np.where(real, starts[samples, None] + offsets[None, :], starts[samples, None])
            flat = np.flatnonzero(real)
            parts = (gather, flat, gather.reshape(-1)[flat])
            blocks.append(Block(*(on_device(part, self.device) for part in parts)))
            first = last
        return blocks


def _samples(x: torch.Tensor, gather: torch.Tensor) -> torch.Tensor:
    """`x[gather]`; as `index_select`, whose backward pass is several times faster on a CPU."""
    return x.index_select(0, gather.flatten()).unflatten(0, gather.shape)


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    batch_invariant: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, T, d], key and value [1, kv_heads, T, d].

    Returns [1, T, heads, d]. Ranks that share a micro-batch give and get their slice of the T tokens.
    `sliding_window`: tokens that one sees, itself included. `softcap`: scores s become softcap · tanh(s / softcap).
    `s_aux` [heads]: the score of a sink, which takes weight and gives nothing.
    """
    ranks = segments.ranks
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
    if ranks.size > 1:
        query, key, value = (ranks.to_heads(x) for x in (query, key, value))
        s_aux = None if s_aux is None else s_aux.chunk(ranks.size)[ranks.rank]
    if batch_invariant:
        assert scaling is not None
        return _attend_in_order(query, key, value, segments, scaling).unsqueeze(0), None
    out = _attend(query, key, value, segments, scaling, dropout, sliding_window, softcap, s_aux)
    return (ranks.to_tokens(out) if ranks.size > 1 else out).unsqueeze(0), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """[T, heads, d] of query [T, heads, d], key and value [T, kv_heads, d]."""
    groups = query.shape[1] // key.shape[1]
    if dropout == 0 and softcap is None and s_aux is None and has_kernel(query, value):
        longest = int(segments.lengths.max())
        back = -1 if sliding_window is None else sliding_window - 1
        out = varlen_attn(
            query,
            key,
            value,
            segments.bounds,
            segments.bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(back, 0),
            enable_gqa=groups > 1,
        )
        assert isinstance(out, torch.Tensor)
        return out
    parts, places = [], []
    for block in segments.blocks:
        longest = block.gather.shape[1]
        q, k, v = (
            _samples(x, block.gather).transpose(1, 2) for x in (query, key, value)
        )  # [samples, heads, longest, d]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        window = None
        if sliding_window is not None and longest > sliding_window:
            window = (
                torch.ones(longest, longest, dtype=torch.bool, device=q.device)
                .tril()
                .triu(1 - sliding_window)
            )
        if softcap is not None or s_aux is not None:
            attended = _written_out(q, k, v, window, scaling, dropout, softcap, s_aux)
        else:
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=window, is_causal=window is None, scale=scaling, dropout_p=dropout
            )
        parts.append(attended.transpose(1, 2).flatten(0, 1).index_select(0, block.flat))
        places.append(block.packed)
    return torch.empty_like(query).index_copy(0, torch.cat(places), torch.cat(parts))


def _attend_in_order(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float
) -> torch.Tensor:
    """The same by `causal_attention`; zeros for tokens behind the last sample."""
    parts = []
    for block in segments.blocks:
        q, k, v = (_samples(x, block.gather) for x in (query, key, value))  # [samples, longest, heads, d]
        attended = causal_attention(q, k, v, block.gather.new_zeros(len(q)), scaling)
        parts.append(attended.flatten(0, 1).index_select(0, block.flat))
    places = torch.cat([block.packed for block in segments.blocks])
    return torch.zeros_like(query).index_copy(0, places, torch.cat(parts))


def has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch's flash attention takes samples of several lengths: [T, heads, d] on a GPU since Ampere."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and size == value.shape[-1]
        and size <= MOST_HEAD
        and size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """softmax(scores) v of [samples, heads, longest, d], under `window` or a causal mask; the softmax in float32."""
    longest = q.shape[2]
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if window is None:
        window = torch.ones(longest, longest, dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~window, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(len(scores), -1, longest, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))[..., :longest]
    return F.dropout(weights.to(v.dtype), dropout) @ v


# Its plans are made for every shape anew, and packs hardly ever have the same: tens of milliseconds each.
torch.backends.cuda.enable_cudnn_sdp(False)
AttentionInterface.register(NAME, segment_attention)
AttentionInterface.register(BATCH_INVARIANT, partial(segment_attention, batch_invariant=True))
