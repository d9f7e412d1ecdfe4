"""The layout that the released HPT code would have used, for `mode: official`.

That code takes means over each micro-batch and sums them, so the balance of SFT, RL and entropy
depends on how samples were packed on its 8 ranks. Here its packing is computed as arithmetic on sample
lengths, wherever the samples really go: equal sample counts per rank balanced by tokens, then
micro-batches of about 32,768 tokens, as many on every rank. Its Karmarkar-Karp partition is
replaced by longest-first; the number of micro-batches is the same, their exact members may differ.
"""

from __future__ import annotations

import numpy as np

NUM_RANKS = 8
MAX_TOKENS = 32_768  # per micro-batch, prompt and response together


def virtual_micro_batches(
    sample_lengths: np.ndarray, num_ranks: int = NUM_RANKS, max_tokens: int = MAX_TOKENS
) -> np.ndarray:
    """[samples] int64: the micro-batch of each sample, numbered across all ranks.

    `sample_lengths` counts prompt and response. The number per rank is the largest that any rank
    needs, ⌈tokens / max_tokens⌉, but never more than it has samples.
    """
    rank = _spread(sample_lengths, num_ranks, room=-(-len(sample_lengths) // num_ranks))
    tokens = np.bincount(rank, sample_lengths, num_ranks)
    per_rank = max(int(np.ceil(tokens.max(initial=0) / max_tokens)), 1)
    micro_batch = np.zeros(len(sample_lengths), dtype=np.int64)
    for r in range(num_ranks):
        mine = np.flatnonzero(rank == r)
        micro_batch[mine] = r * per_rank + _spread(sample_lengths[mine], per_rank, room=len(mine))
    return micro_batch


def _spread(lengths: np.ndarray, num_bins: int, room: int) -> np.ndarray:
    """Longest first, each into the bin with the fewest tokens that has room for another sample."""
    bins = np.zeros(len(lengths), dtype=np.int64)
    tokens, samples = np.zeros(num_bins), np.zeros(num_bins, dtype=np.int64)
    for i in np.argsort(-lengths, kind="stable"):
        bins[i] = np.argmin(np.where(samples < room, tokens, np.inf))
        tokens[bins[i]] += lengths[i]
        samples[bins[i]] += 1
    return bins
