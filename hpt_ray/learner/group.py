"""The driver's side of the learner: rows in, optimizer steps and weights out.

Rows are weighed by the estimator, packed, and sent to the ranks as soon as a round of packs is full;
the backward pass therefore runs while other questions are still being generated. Where a denominator
needs all rows of the update (a token mean), weighing waits for `finish`. Where rows must be scored first
(PPO, KL in the reward), they take the way through `RowScoring`, and a critic steps with the policy.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpt_ray.batch.pack import Packer, dummy_pack
from hpt_ray.cluster.groups import ActorGroup, wait_all
from hpt_ray.estimators import BatchShape, Estimator, effective_sample_size
from hpt_ray.learner.rank import UpdateReport
from hpt_ray.learner.scoring import RowScoring
from hpt_ray.learner.weighing import Sums, needs_scores, weigh_rows
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
    """All learner ranks as one optimizer, and the critic's beside them where there is one."""

    def __init__(
        self,
        ranks: ActorGroup,
        estimator: Estimator,
        *,
        batch: BatchShape,
        tokens_per_microbatch: int,
        timeout_s: float,
        reference: ActorGroup | None = None,
        critic: ActorGroup | None = None,
    ):
        self.ranks, self.critic = ranks, critic
        self._estimator, self._batch, self._timeout_s = estimator, batch, timeout_s
        dummy = dummy_pack(len(estimator.terms))
        self._packer = Packer(num_ranks=len(ranks), tokens_per_microbatch=tokens_per_microbatch, dummy=dummy)
        self._scoring: RowScoring | None = None
        if needs_scores(estimator):
            self._scoring = RowScoring(
                critic=critic,
                reference=reference,
                tokens_per_microbatch=tokens_per_microbatch,
                timeout_s=timeout_s,
                then=self._take,
            )
            reference = None  # its log-probs are in the rewards by now
        self._reference = None if reference is None else itertools.cycle(reference.actors)
        self._reset()

    def _reset(self) -> None:
        self._rows: list[Row] = []  # only where weighing waits
        self._pending: list[Any] = []
        self._critic_pending: list[Any] = []
        self._counts = {"rows": 0, "demos": 0, "skipped": 0}
        self._sums: list[Sums] = []
        self._begin: float | None = None

    def add(self, rows: list[Row]) -> None:
        """Take in the rows of one question. Sends what fills a round of packs."""
        self._counts["rows"] += len(rows)
        self._counts["demos"] += sum(row.is_demo for row in rows)
        if self._scoring is None:
            self._take(rows)
        else:
            self._scoring.add(rows)

    def _take(self, rows: list[Row]) -> None:
        """The rows of one question, scored where that is asked for."""
        if self._estimator.needs_all_rows:
            self._rows += rows
        else:
            self._weigh(rows)

    def _weigh(self, rows: list[Row]) -> None:
        weighed = weigh_rows(self._estimator, rows, self._batch)
        self._counts["skipped"] += weighed.num_skipped
        self._sums.append(weighed.sums)
        self._packer.add(weighed.rows)
        for packs in self._packer.full_rounds():
            self._send(packs)
        if self._scoring is not None:
            self._critic_pending += self._scoring.train()

    def _send(self, packs: list[Pack]) -> None:
        if self._begin is None:
            self._begin = time.perf_counter()
        arguments: list[tuple] = [(pack,) for pack in packs]
        if self._reference is not None:
            # The scorer's answer goes to the learner without passing through here.
            arguments = [(pack, next(self._reference).logprobs.remote(pack)) for pack in packs]
        self._pending += self.ranks.send_each("accumulate", arguments)

    async def finish(self, learning_rate: float, critic_learning_rate: float = 0.0) -> UpdateResult:
        """Send what is left, step, and wait for it. Collective over the ranks, rows or none."""
        if self._scoring is not None:
            await self._scoring.finish()
        self._weigh(self._rows)
        for packs in self._packer.last_rounds():
            self._send(packs)
        steps = [self._step(self.ranks, self._pending, learning_rate)]
        if self.critic is not None:
            steps.append(self._step(self.critic, self._critic_pending, critic_learning_rate))
        reports, *critic_reports = await asyncio.gather(*steps)
        assert self._begin is not None
        metrics = _means([*self._sums, *(report.stats for report in reports)])
        metrics |= _peaks(reports) | {"optim/grad_norm": reports[0].grad_norm}
        for ranks in critic_reports:
            metrics |= _means(report.stats for report in ranks) | {"critic/grad_norm": ranks[0].grad_norm}
        result = UpdateResult(
            metrics=metrics,
            num_tokens=sum(report.num_tokens for report in reports),
            num_rows=self._counts["rows"],
            num_demo_rows=self._counts["demos"],
            num_skipped_rows=self._counts["skipped"],
            seconds=time.perf_counter() - self._begin,
        )
        self._reset()
        return result

    async def _step(self, ranks: ActorGroup, pending: list[Any], learning_rate: float) -> list[UpdateReport]:
        """Wait for the backward passes that are under way, then for the step; each rank's report."""
        names = [ranks.names[i % len(ranks)] for i in range(len(pending))]
        results = await wait_all(
            [*pending, *ranks.send("step", learning_rate)],
            names=names + ranks.names,
            what="update the weights",
            timeout_s=self._timeout_s,
        )
        return results[-len(ranks) :]


def _means(parts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, float | None]:
    """Means over everything that the parts (ranks, questions) counted, under the names of metrics.jsonl."""
    sums: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for part in parts:
        for name, (total, count) in part.items():
            sums[name] = (sums[name][0] + total, sums[name][1] + count)
    derived = _importance(sums) | _explained(sums)
    return {name: total / count if count else None for name, (total, count) in sums.items()} | derived


def _importance(sums: dict[str, tuple[float, float]]) -> dict[str, float | None]:
    """What the moments of the importance weights, which it takes out of `sums`, come to."""
    moments: Sums = {
        name: sums.pop(name) for name in ("policy/ratio", "policy/ratio_squared") if name in sums
    }
    if not moments:
        return {}
    num_tokens = moments["policy/ratio"][1]
    share = effective_sample_size({**moments}) if num_tokens else None
    return {"policy/effective_sample_size": share}


def _explained(sums: dict[str, tuple[float, float]]) -> dict[str, float | None]:
    """What the moments of returns G and errors G − V, which it takes out of `sums`, say about the critic."""
    names = ("critic/return", "critic/return_squared", "critic/error", "critic/error_squared")
    if names[0] not in sums:
        return {}
    (total, count), *others = (sums.pop(name) for name in names)
    if not count:
        return {"critic/return_mean": None, "critic/value_mean": None, "critic/explained_variance": None}
    returns, (returns_squared, error, error_squared) = total / count, (t / count for t, _ in others)
    variance = returns_squared - returns**2
    explained = 1 - (error_squared - error**2) / variance if variance > 1e-12 else None
    return {
        "critic/return_mean": returns,
        "critic/value_mean": returns - error,
        "critic/explained_variance": explained,
    }


def _peaks(reports: list[UpdateReport]) -> dict[str, float | None]:
    """The largest over ranks of what is reported as a maximum."""
    names = {name for report in reports for name in report.peaks}
    return {name: max(r.peaks[name] for r in reports if name in r.peaks) for name in sorted(names)}
