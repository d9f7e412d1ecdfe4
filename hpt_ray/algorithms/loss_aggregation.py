"""Loss aggregations: how token losses become one number, as the divisor Z of each stream.

In: a `SampleView` and which of its samples belong to the stream. Out: [samples] 1/Z, fixed before the first
backward pass. N and n are the nominal sizes of the optimizer step, so a sample that is missing changes nothing
for the others. For demonstrations n is 1. What needs all samples says so; then no backward pass may start
before the last group is in.

The `official-` ones stand for the layout that the released HPT code would have used (`mode: official`). It takes
means over each micro-batch and sums them, so the balance of SFT, RL and entropy depends on how samples were packed
on its 8 ranks. Here its packing is computed as arithmetic on sample lengths, wherever the samples really go:
equal sample counts per rank balanced by tokens, then micro-batches of about 32,768 tokens, as many on every rank.
Its Karmarkar-Karp partition is replaced by longest-first; the number of micro-batches is the same, their exact
members may differ.
"""

from __future__ import annotations

import numpy as np

from hpt_ray.algorithms.base import Part
from hpt_ray.algorithms.batch import Array, SampleView
from hpt_ray.algorithms.outside import Table

NUM_RANKS = 8  # of the official code
MAX_TOKENS = 32_768  # of one of its micro-batches, prompt and response together


def seq_mean_token_sum(view: SampleView, members: Array) -> Array:
    batch = view.batch
    per_prompt = np.where(view.is_demo, 1, max(batch.num_rollouts, 1))
    return 1.0 / (batch.num_prompts * per_prompt)


def seq_mean_token_mean(view: SampleView, members: Array) -> Array:
    return seq_mean_token_sum(view, members) / view.lengths


def seq_mean_token_sum_norm(view: SampleView, members: Array) -> Array:
    return seq_mean_token_sum(view, members) / length_constant(view)


def group_seq_mean_token_sum_norm(view: SampleView, members: Array) -> Array:
    batch = view.batch
    z = batch.num_prompts * max(batch.num_rollouts, 1) * length_constant(view)
    return np.full(len(view.lengths), 1.0 / z)


def length_constant(view: SampleView) -> float:
    return view.settings.length_constant or view.batch.max_response_tokens


def union_seq_mean_token_sum_norm(view: SampleView, members: Array) -> Array:
    batch = view.batch
    z = batch.num_prompts * (batch.num_rollouts + 1) * length_constant(view)
    return np.full(len(view.lengths), 1.0 / z)


def union_token_mean(view: SampleView, members: Array) -> Array:
    tokens = np.bincount(view.groups, view.lengths * (view.weights != 0), view.num_groups)
    return 1.0 / (view.batch.num_prompts * np.maximum(tokens[view.groups], 1))


def token_mean(view: SampleView, members: Array) -> Array:
    tokens = view.lengths[members & (view.weights != 0)].sum()
    return np.full(len(view.lengths), 1.0 / max(tokens, 1))


def mixed_token_mean(view: SampleView, members: Array) -> Array:
    inside = members & (view.weights != 0)
    most = np.full(view.num_groups, -np.inf)
    least = np.full(view.num_groups, np.inf)
    np.maximum.at(most, view.groups[inside], view.rewards[inside])
    np.minimum.at(least, view.groups[inside], view.rewards[inside])
    mixed = (most > least)[view.groups]
    # Samples of other groups are in no sum: in those of KL and entropy neither.
    return np.where(mixed, token_mean(view, inside & mixed), 0.0)


def official_sum(view: SampleView, members: Array) -> Array:
    return np.full(len(view.lengths), 1.0 / (NUM_RANKS * length_constant(view)))


def official_micro_batch_mean(view: SampleView, members: Array) -> Array:
    inside = members & (view.weights != 0)
    micro_batch = virtual_micro_batches(view.prompt_lengths + view.lengths)
    tokens = np.bincount(micro_batch, view.lengths * inside, int(micro_batch.max(initial=-1)) + 1)
    return 1.0 / (NUM_RANKS * np.maximum(tokens[micro_batch], 1))


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


_C = frozenset({"length_constant"})
_ALL = frozenset({"all_samples"})

LOSS_AGGREGATIONS: Table[Part] = Table(
    Part,
    {
        "seq-mean-token-sum": Part(seq_mean_token_sum, "Z = N·n  (demonstrations: N)"),
        "seq-mean-token-mean": Part(seq_mean_token_mean, "Z = N·n·L_i  (demonstrations: N·L)"),
        "seq-mean-token-sum-norm": Part(seq_mean_token_sum_norm, "Z = N·n·C  (demonstrations: N·C)", _C),
        "group-seq-mean-token-sum-norm": Part(
            group_seq_mean_token_sum_norm,
            "Z = N·n·C, also of demonstrations: a prefix is part of a rollout",
            _C,
        ),
        "union-seq-mean-token-sum-norm": Part(
            union_seq_mean_token_sum_norm, "Z = N·(n+1)·C, the demonstration being one of n+1", _C
        ),
        "union-token-mean": Part(union_token_mean, "Z = N·Σ L over the prompt's rollouts and demonstration"),
        "token-mean": Part(token_mean, "Z = Σ L over the stream's samples in the optimizer step", _ALL),
        "mixed-token-mean": Part(
            mixed_token_mean,
            "Z = Σ L over samples of groups whose rewards differ, in the optimizer step",
            _ALL,
        ),
        "official-sum": Part(official_sum, f"Z = {NUM_RANKS}·C, over {NUM_RANKS} virtual ranks", _C),
        "official-micro-batch-mean": Part(
            official_micro_batch_mean,
            f"Z = {NUM_RANKS}·(the stream's tokens in the sample's virtual micro-batch)",
            _ALL,
        ),
    },
    "view, members",
    Part,
)
