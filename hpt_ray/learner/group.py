"""The driver's side of the learner: rows in, optimizer steps and weights out.

Rows are weighed by the estimator, packed, and sent to the ranks as soon as a round of packs is full;
the backward pass therefore runs while other questions are still being generated. Where a denominator
needs all rows of the update (a token mean), weighing waits for `finish`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpt_ray.batch.pack import Packer, WeighedRow, dummy_pack
from hpt_ray.cluster.groups import ActorGroup
from hpt_ray.estimators import BatchShape, Estimator
from hpt_ray.records import Pack, Row


@dataclass(frozen=True)
class UpdateResult:
    """One optimizer step, over all ranks."""

    metrics: dict[str, float | None]
    num_tokens: int
    num_rows: int
    num_demo_rows: int
    num_skipped_rows: int  # rows whose terms are all exactly zero: never sent
    seconds: float  # from the first pack to the step


class LearnerGroup:
    """All learner ranks as one optimizer."""

    def __init__(
        self,
        ranks: ActorGroup,
        estimator: Estimator,
        *,
        batch: BatchShape,
        tokens_per_microbatch: int,
        timeout_s: float,
        reference: ActorGroup | None = None,
    ):
        self.ranks = ranks
        self._estimator, self._batch, self._timeout_s = estimator, batch, timeout_s
        self._reference = reference
        dummy = dummy_pack(len(estimator.terms))
        self._packer = Packer(num_ranks=len(ranks), tokens_per_microbatch=tokens_per_microbatch, dummy=dummy)
        self._reset()

    def _reset(self) -> None:
        self._rows: list[Row] = []  # only where weighing waits
        self._pending: list[Any] = []
        self._counts = {"rows": 0, "demos": 0, "skipped": 0}
        self._begin: float | None = None

    def add(self, rows: list[Row]) -> None:
        """Take in the rows of one question. Sends what fills a round of packs."""
        self._counts["rows"] += len(rows)
        self._counts["demos"] += sum(row.is_demo for row in rows)
        if self._estimator.needs_all_rows:
            self._rows += rows
        else:
            self._weigh(rows)
            for packs in self._packer.full_rounds():
                self._send(packs)

    def _weigh(self, rows: list[Row]) -> None:
        if not rows:
            return
        lengths = np.array([row.response_length for row in rows])
        weights = self._estimator.weigh(
            lengths,
            np.array([row.group for row in rows]),
            np.array([row.reward for row in rows], np.float64),
            np.array([row.is_demo for row in rows]),
            np.array([row.weight for row in rows], np.float64),
            self._batch,
            prompt_lengths=np.array([row.prompt_length for row in rows]),
        )
        counts = weights.counts(lengths)
        advantages = weights.token_advantages(lengths)
        ends = np.cumsum(lengths)
        weighed = [
            WeighedRow(
                row,
                advantages[:, ends[i] - lengths[i] : ends[i]],
                np.asarray(weights.scales)[:, i],
                float(weights.entropy_scales[i]),
                float(weights.kl_scales[i]),
            )
            for i, row in enumerate(rows)
            if counts[i]
        ]
        self._counts["skipped"] += len(rows) - len(weighed)
        self._packer.add(weighed)

    def _send(self, packs: list[Pack]) -> None:
        if self._begin is None:
            self._begin = time.perf_counter()
        arguments: list[tuple] = [(pack,) for pack in packs]
        if self._reference is not None:
            # The scorer's answer goes to the learner without passing through here.
            scorers = self._reference.actors
            arguments = [
                (pack, scorers[i % len(scorers)].logprobs.remote(pack)) for i, pack in enumerate(packs)
            ]
        self._pending += self.ranks.send_each("accumulate", arguments)

    async def finish(self, learning_rate: float) -> UpdateResult:
        """Send what is left, step, and wait for it. Collective over the ranks, rows or none."""
        if self._rows:
            self._weigh(self._rows)
        for packs in self._packer.last_rounds():
            self._send(packs)
        steps = self.ranks.send("step", learning_rate)
        names = [self.ranks.names[i % len(self.ranks)] for i in range(len(self._pending))]
        waiting = ActorGroup(names + self.ranks.names, [])
        results = await waiting.wait([*self._pending, *steps], "update the weights", self._timeout_s)
        reports = results[-len(self.ranks) :]
        assert self._begin is not None
        result = UpdateResult(
            metrics=_combine(reports),
            num_tokens=sum(report.num_tokens for report in reports),
            num_rows=self._counts["rows"],
            num_demo_rows=self._counts["demos"],
            num_skipped_rows=self._counts["skipped"],
            seconds=time.perf_counter() - self._begin,
        )
        self._reset()
        return result


def _combine(reports: list[Any]) -> dict[str, float | None]:
    """Means over all tokens of all ranks, maxima over ranks, and the norm all ranks agree on."""
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    peaks: dict[str, float] = {}
    for report in reports:
        for name, (total, count) in report.stats.items():
            sums[name][0] += total
            sums[name][1] += count
        for name, peak in report.peaks.items():
            peaks[name] = max(peak, peaks.get(name, peak))
    means = {name: total / count if count else None for name, (total, count) in sums.items()}
    return {**means, **peaks, "optim/grad_norm": reports[0].grad_norm}
