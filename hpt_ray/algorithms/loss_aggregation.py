"""Aggregations: the denominator Z of each stream, fixed before the first backward pass.

In: a `SampleView` and which of its samples belong to the stream. Out: [samples] 1/Z. N and n are the
nominal sizes of the optimizer step, so a sample that is missing changes nothing for the others. For
demonstrations n is 1. What needs all samples says so; then no backward pass may start before the last
group is in.
"""

from __future__ import annotations

import numpy as np

from hpt_ray.algorithms.base import Part
from hpt_ray.algorithms.batch import Array, SampleView
from hpt_ray.algorithms.official import NUM_RANKS, virtual_micro_batches


def seq_mean_token_sum(view: SampleView, members: Array) -> Array:
    batch = view.batch
    per_prompt = np.where(view.is_demo, 1, max(batch.num_rollouts, 1))
    return 1.0 / (batch.num_prompts * per_prompt)


def seq_mean_token_mean(view: SampleView, members: Array) -> Array:
    return seq_mean_token_sum(view, members) / view.lengths


def seq_mean_token_sum_norm(view: SampleView, members: Array) -> Array:
    return seq_mean_token_sum(view, members) / length_constant(view)


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
    return token_mean(view, inside & (most > least)[view.groups])


def official_sum(view: SampleView, members: Array) -> Array:
    return np.full(len(view.lengths), 1.0 / (NUM_RANKS * length_constant(view)))


def official_micro_batch_mean(view: SampleView, members: Array) -> Array:
    inside = members & (view.weights != 0)
    micro_batch = virtual_micro_batches(view.prompt_lengths + view.lengths)
    tokens = np.bincount(micro_batch, view.lengths * inside, int(micro_batch.max(initial=-1)) + 1)
    return 1.0 / (NUM_RANKS * np.maximum(tokens[micro_batch], 1))


def length_constant(view: SampleView) -> float:
    return view.settings.length_constant or view.batch.max_response_tokens


_C = frozenset({"length_constant"})
_ALL = frozenset({"all_samples"})

LOSS_AGGREGATIONS: dict[str, Part] = {
    "seq-mean-token-sum": Part(seq_mean_token_sum, "Z = N·n  (demonstrations: N)"),
    "seq-mean-token-mean": Part(seq_mean_token_mean, "Z = N·n·L_i  (demonstrations: N·L)"),
    "seq-mean-token-sum-norm": Part(seq_mean_token_sum_norm, "Z = N·n·C  (demonstrations: N·C)", _C),
    "union-seq-mean-token-sum-norm": Part(
        union_seq_mean_token_sum_norm, "Z = N·(n+1)·C, the demonstration being one of n+1", _C
    ),
    "union-token-mean": Part(union_token_mean, "Z = N·Σ L over the prompt's rollouts and demonstration"),
    "token-mean": Part(token_mean, "Z = Σ L over the stream's samples in the optimizer step", _ALL),
    "mixed-token-mean": Part(
        mixed_token_mean, "Z = Σ L over samples of groups whose rewards differ, in the optimizer step", _ALL
    ),
    "official-sum": Part(official_sum, f"Z = {NUM_RANKS}·C, over {NUM_RANKS} virtual ranks", _C),
    "official-micro-batch-mean": Part(
        official_micro_batch_mean,
        f"Z = {NUM_RANKS}·(the stream's tokens in the sample's virtual micro-batch)",
        _ALL,
    ),
}
