"""Exact attention over packed samples on any device, without a T × T mask and without flash attention.

Samples lie end to end in one sequence of T tokens, and a token may see its own sample only. All layers but
attention work on the packed sequence. Here queries, keys and values are laid out as [samples, longest],
causal attention runs on that, and the result is laid back. Padding stands at the end of each sample,
where causal attention never looks, so it changes nothing. Samples of similar length share a block, so
that one long sample does not pad many short ones.

Registered with transformers as attention implementation `segments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "segments"
# A sample joins a block if it is at most this share, or this many tokens, shorter than the longest there:
# little padding for long samples, few blocks for short ones.
MAX_PADDING = 0.2
MAX_PADDING_TOKENS = 32


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
    """How a packed sequence of `num_tokens` divides into samples, for `segment_attention`."""

    blocks: list[Block]
    num_tokens: int

    @classmethod
    def from_lengths(cls, sample_lengths: np.ndarray, device: torch.device | str = "cpu") -> Segments:
        """`sample_lengths` [samples]: tokens of each sample, in packed order."""
        lengths = np.asarray(sample_lengths, np.int64)
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
            blocks.append(
                Block(*(torch.from_numpy(a).to(device) for a in (gather, flat, gather.reshape(-1)[flat])))
            )
            first = last
        return cls(blocks, int(lengths.sum()))


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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, T, d], key and value [1, kv_heads, T, d].

    Returns [1, T, heads, d]. Sliding windows shorter than a sample, soft-capped scores (`softcap`) and
    attention sinks (`s_aux`) are not supported and are refused.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError(
            f"attention `segments` has no {'softcap' if softcap is not None else 's_aux'}, which this model "
            "needs; set model.attention=flash_attention_2"
        )
    groups = query.shape[1] // key.shape[1]
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
    parts, places = [], []
    for block in segments.blocks:
        longest = block.gather.shape[1]
        if sliding_window is not None and longest > sliding_window:
            raise ValueError(
                f"attention `segments` has no sliding window, and a sample of {longest} tokens is longer than "
                f"the model's window of {sliding_window}; set model.attention=flash_attention_2"
            )
        q, k, v = (
            _samples(x, block.gather).transpose(1, 2) for x in (query, key, value)
        )  # [samples, heads, longest, d]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
        parts.append(attended.transpose(1, 2).flatten(0, 1).index_select(0, block.flat))
        places.append(block.packed)
    out = torch.empty_like(query).index_copy(0, torch.cat(places), torch.cat(parts))
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, segment_attention)
