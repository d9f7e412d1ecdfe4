"""The layout that the released HPT code would have used, for `mode: official`.

That code takes means over each micro-batch and sums them, so the balance of SFT, RL and entropy
depends on how rows were packed on its 8 ranks. Here its packing is computed as arithmetic on row
lengths, wherever the rows really go: equal row counts per rank balanced by tokens, then
micro-batches of about 32,768 tokens, as many on every rank. Its Karmarkar-Karp partition is
replaced by longest-first; the number of micro-batches is the same, their exact members may differ.
"""

from __future__ import annotations

import numpy as np

NUM_RANKS = 8
MAX_TOKENS = 32_768  # per micro-batch, prompt and response together


def virtual_microbatches(
    row_lengths: np.ndarray, num_ranks: int = NUM_RANKS, max_tokens: int = MAX_TOKENS
) -> np.ndarray:
    """[rows] int64: the micro-batch of each row, numbered across all ranks.

    `row_lengths` counts prompt and response. The number per rank is the largest that any rank
    needs, ⌈tokens / max_tokens⌉, but never more than it has rows.
    """
    rank = _spread(row_lengths, num_ranks, room=-(-len(row_lengths) // num_ranks))
    tokens = np.bincount(rank, row_lengths, num_ranks)
    per_rank = max(int(np.ceil(tokens.max(initial=0) / max_tokens)), 1)
    microbatch = np.zeros(len(row_lengths), dtype=np.int64)
    for r in range(num_ranks):
        mine = np.flatnonzero(rank == r)
        microbatch[mine] = r * per_rank + _spread(row_lengths[mine], per_rank, room=len(mine))
    return microbatch


def _spread(lengths: np.ndarray, num_bins: int, room: int) -> np.ndarray:
    """Longest first, each into the bin with the fewest tokens that has room for another row."""
    bins = np.zeros(len(lengths), dtype=np.int64)
    tokens, rows = np.zeros(num_bins), np.zeros(num_bins, dtype=np.int64)
    for i in np.argsort(-lengths, kind="stable"):
        bins[i] = np.argmin(np.where(rows < room, tokens, np.inf))
        tokens[bins[i]] += lengths[i]
        rows[bins[i]] += 1
    return bins
