"""Normalizers: the denominator Z of each stream, fixed before the first backward pass.

In: a `RowView` and which of its rows belong to the stream. Out: [rows] 1/Z. N and n are the
nominal sizes of the optimizer step, so a row that is missing changes nothing for the others. For
demonstrations n is 1. What needs all rows says so; then no backward pass may start before the last
group is in.
"""

from __future__ import annotations

import numpy as np

from hpt_ray.algorithms.base import Part
from hpt_ray.algorithms.batch import Array, RowView
from hpt_ray.algorithms.official import NUM_RANKS, virtual_microbatches


def row_sum(view: RowView, members: Array) -> Array:
    batch = view.batch
    per_question = np.where(view.is_demo, 1, max(batch.num_rollouts, 1))
    return 1.0 / (batch.num_questions * per_question)


def row_mean(view: RowView, members: Array) -> Array:
    return row_sum(view, members) / view.lengths


def constant(view: RowView, members: Array) -> Array:
    return row_sum(view, members) / length_constant(view)


def union_constant(view: RowView, members: Array) -> Array:
    batch = view.batch
    z = batch.num_questions * (batch.num_rollouts + 1) * length_constant(view)
    return np.full(len(view.lengths), 1.0 / z)


def union_token_mean(view: RowView, members: Array) -> Array:
    tokens = np.bincount(view.groups, view.lengths * (view.weights != 0), view.num_groups)
    return 1.0 / (view.batch.num_questions * np.maximum(tokens[view.groups], 1))


def token_mean(view: RowView, members: Array) -> Array:
    tokens = view.lengths[members & (view.weights != 0)].sum()
    return np.full(len(view.lengths), 1.0 / max(tokens, 1))


def mixed_token_mean(view: RowView, members: Array) -> Array:
    inside = members & (view.weights != 0)
    most = np.full(view.num_groups, -np.inf)
    least = np.full(view.num_groups, np.inf)
    np.maximum.at(most, view.groups[inside], view.rewards[inside])
    np.minimum.at(least, view.groups[inside], view.rewards[inside])
    return token_mean(view, inside & (most > least)[view.groups])


def official_sum(view: RowView, members: Array) -> Array:
    return np.full(len(view.lengths), 1.0 / (NUM_RANKS * length_constant(view)))


def official_microbatch_mean(view: RowView, members: Array) -> Array:
    inside = members & (view.weights != 0)
    microbatch = virtual_microbatches(view.prompt_lengths + view.lengths)
    tokens = np.bincount(microbatch, view.lengths * inside, int(microbatch.max(initial=-1)) + 1)
    return 1.0 / (NUM_RANKS * np.maximum(tokens[microbatch], 1))


def length_constant(view: RowView) -> float:
    return view.settings.length_constant or view.batch.max_response_tokens


_C = frozenset({"length_constant"})
_ALL = frozenset({"all_rows"})

NORMALIZERS: dict[str, Part] = {
    "row_sum": Part(row_sum, "Z = N·n  (demonstrations: N)"),
    "row_mean": Part(row_mean, "Z = N·n·L_i  (demonstrations: N·L)"),
    "constant": Part(constant, "Z = N·n·C  (demonstrations: N·C)", _C),
    "union_constant": Part(union_constant, "Z = N·(n+1)·C, the demonstration being one of n+1", _C),
    "union_token_mean": Part(union_token_mean, "Z = N·Σ L over the question's rollouts and demonstration"),
    "token_mean": Part(token_mean, "Z = Σ L over the stream's rows in the optimizer step", _ALL),
    "mixed_token_mean": Part(
        mixed_token_mean, "Z = Σ L over rows of groups whose rewards differ, in the optimizer step", _ALL
    ),
    "official_sum": Part(official_sum, f"Z = {NUM_RANKS}·C, over {NUM_RANKS} virtual ranks", _C),
    "official_microbatch_mean": Part(
        official_microbatch_mean,
        f"Z = {NUM_RANKS}·(the stream's tokens in the row's virtual micro-batch)",
        _ALL,
    ),
}
