"""Rows to packs, packs to ranks.

A pack holds at most `tokens_per_microbatch` tokens of whole rows, laid end to end. Packs leave in
rounds of one per rank, because some ZeRO stages run their forward passes in lockstep; a round that
cannot be filled is completed with dummies that add exactly nothing. Since every row already carries
its share of 1/Z, how rows fall into packs, rounds and ranks does not change the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpt_ray.types import Pack, Row


@dataclass(slots=True)
class WeighedRow:
    """A row and what it weighs: `advantages` [K, L] (or [K, 1] for all its tokens), `scales` [K]."""

    row: Row
    advantages: np.ndarray
    scales: np.ndarray
    entropy_scale: float = 0.0
    kl_scale: float = 0.0

    @property
    def num_tokens(self) -> int:
        return len(self.row.token_ids)


def make_pack(rows: list[WeighedRow], *, is_dummy: bool = False) -> Pack:
    """Lay `rows` end to end."""
    row_lengths = np.array([r.num_tokens for r in rows], np.int32)
    responses = np.array([r.row.response_length for r in rows], np.int32)
    per_token = [
        np.broadcast_to(r.advantages, (r.advantages.shape[0], r.row.response_length)).astype(np.float32)
        for r in rows
    ]
    return Pack(
        token_ids=np.concatenate([r.row.token_ids for r in rows]),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in row_lengths]),
        row_lengths=row_lengths,
        response_lengths=responses,
        logp_old=np.concatenate([r.row.logp_old for r in rows]),
        advantages=np.concatenate(per_token, axis=1),
        scales=np.stack([r.scales for r in rows], axis=1).astype(np.float32),
        entropy_scales=np.array([r.entropy_scale for r in rows], np.float32),
        kl_scales=np.array([r.kl_scale for r in rows], np.float32),
        group_ids=np.array([r.row.group for r in rows], np.int32),
        is_demo=np.array([r.row.is_demo for r in rows]),
        is_dummy=is_dummy,
    )


def dummy_pack(num_terms: int) -> Pack:
    """The smallest pack for K terms: one row of two tokens whose scales are zero."""
    row = Row("dummy", np.zeros(2, np.int32), 1, np.zeros(1, np.float32), False, 0.0, 0)
    nothing = WeighedRow(row, np.zeros((num_terms, 1), np.float32), np.zeros(num_terms, np.float32))
    return make_pack([nothing], is_dummy=True)


class Packer:
    """Collects weighed rows and gives them out as rounds of one pack per rank."""

    def __init__(self, *, num_ranks: int, tokens_per_microbatch: int, dummy: Pack):
        self._num_ranks = num_ranks
        self._budget = tokens_per_microbatch
        self._dummy = dummy
        self._waiting: list[WeighedRow] = []
        self._waiting_tokens = 0
        self.rounds_out = 0

    def add(self, rows: list[WeighedRow]) -> None:
        for row in rows:
            if row.num_tokens > self._budget:
                raise ValueError(
                    f"row of {row.num_tokens} tokens ({row.row.question_id}) in packs of {self._budget}"
                )
        self._waiting += rows
        self._waiting_tokens += sum(row.num_tokens for row in rows)

    def full_rounds(self) -> Iterator[list[Pack]]:
        """Rounds that the waiting rows fill."""
        while self._waiting_tokens >= self._num_ranks * self._budget:
            yield self._round()

    def last_rounds(self) -> Iterator[list[Pack]]:
        """Everything that still waits; at least one round since the last call, dummies if need be."""
        while self._waiting or not self.rounds_out:
            yield self._round()
        self.rounds_out = 0

    def _round(self) -> list[Pack]:
        """One pack per rank from the longest waiting rows first, each to the rank with fewest tokens."""
        order = sorted(range(len(self._waiting)), key=lambda i: (-self._waiting[i].num_tokens, i))
        bins: list[list[WeighedRow]] = [[] for _ in range(self._num_ranks)]
        loads = [0] * self._num_ranks
        taken = set()
        for i in order:
            rank = min(range(self._num_ranks), key=loads.__getitem__)
            size = self._waiting[i].num_tokens
            if loads[rank] + size <= self._budget:
                bins[rank].append(self._waiting[i])
                loads[rank] += size
                taken.add(i)
        self._waiting = [row for i, row in enumerate(self._waiting) if i not in taken]
        self._waiting_tokens -= sum(loads)
        self.rounds_out += 1
        return [make_pack(rows) if rows else self._dummy for rows in bins]
