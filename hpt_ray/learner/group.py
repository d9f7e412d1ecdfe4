"""The driver's side of the learner: rows in, optimizer steps and weights out.

Rows are weighed by the estimator, packed, and sent to the ranks as soon as a round of packs is full;
the backward pass therefore runs while other questions are still being generated. Where a denominator
needs all rows of the update (a token mean), weighing waits for `finish`. Where rows must be scored first
(PPO, KL in the reward, log π_old of later updates), they take the way through `RowScoring`, and a critic
steps with the policy. The order of packs and sums is that of `add`, whatever comes back first.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np

from hpt_ray.algorithms import BatchShape, Estimator
from hpt_ray.cluster.actor_group import ActorGroup, wait_all
from hpt_ray.learner.base import UpdateReport
from hpt_ray.learner.packing import Packer, dummy_pack
from hpt_ray.learner.policy import OldPolicy
from hpt_ray.learner.scoring import RowScoring
from hpt_ray.learner.sums import Sums, means, peaks
from hpt_ray.learner.weighing import kl_in_reward, needs_scores, weigh_rows
from hpt_ray.types import Pack, Row, UpdateResult


class LearnerGroup:
    """All learner ranks as one optimizer, and the critic's beside them where there is one.

    A step is `updates_per_step` updates. Rows of a later update may be added ahead of time; they wait.
    With `recompute_old_logps` they must be added before the step's first `finish`: they are scored with the
    weights before it, which are π_old for the whole step.
    """

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
        updates_per_step: int = 1,
        recompute_old_logps: bool = False,
    ):
        self.ranks, self.critic = ranks, critic
        self._estimator, self._batch, self._timeout_s = estimator, batch, timeout_s
        self._tokens_per_microbatch = tokens_per_microbatch
        self._all_reference, self._updates_per_step = reference, updates_per_step
        self._recompute = recompute_old_logps
        self._scoring: RowScoring | None = None
        self._own_scoring: RowScoring | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a step anew: rows, packs and scores of the one under way are forgotten."""
        for scoring in (self._scoring, self._own_scoring):
            if scoring is not None:
                scoring.cancel()
        tokens = self._tokens_per_microbatch
        dummy = dummy_pack(len(self._estimator.terms))
        self._packer = Packer(num_ranks=len(self.ranks), tokens_per_microbatch=tokens, dummy=dummy)
        make = partial(RowScoring, tokens_per_microbatch=tokens, timeout_s=self._timeout_s)
        reference = self._all_reference
        if needs_scores(self._estimator):
            in_reward = kl_in_reward(self._estimator)
            self._scoring = make(critic=self.critic, reference=reference if in_reward else None)
            reference = None if in_reward else reference  # a KL loss asks it pack by pack
        if self._recompute:
            self._own_scoring = make(policy=self.ranks)
        self._reference = None if reference is None else itertools.cycle(reference.actors)
        self._update = 0
        self._later: defaultdict[int, list[list[Row]]] = defaultdict(list)  # update -> questions that wait
        self._gaps: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # update -> of tokens scored again
        self._begin_update()

    def _begin_update(self) -> None:
        self._rows: list[Row] = []  # only where weighing waits
        self._pending: list[Any] = []
        self._critic_pending: list[Any] = []
        self._counts = {"rows": 0, "demos": 0, "skipped": 0}
        self._sums: list[Sums] = []
        self._begin: float | None = None
        for rows in self._later.pop(self._update, ()):
            self._take_in(rows)

    def add(self, rows: list[Row], update: int | None = None) -> None:
        """Take in the rows of one question for an update of the step; default: the one under way.

        Sends what fills a round of packs.
        """
        update = self._update if update is None else update
        assert self._update <= update < self._updates_per_step, f"rows of update {update} in {self._update}"
        if self._old_policy(update) is OldPolicy.SCORED:
            assert self._own_scoring is not None
            assert self._update == 0, "π_old is the policy before the first update: add all rows before it"
            sampled = [row.logp_old for row in rows if not row.is_demo]
            self._own_scoring.add(rows, partial(self._rescored, update, sampled))
        else:
            self._admit(update, rows)

    def _old_policy(self, update: int) -> OldPolicy:
        if not self._recompute:
            return OldPolicy.SAMPLER
        # A reward that holds log π_old needs it before the pass that could give it.
        return OldPolicy.SCORED if update or kl_in_reward(self._estimator) else OldPolicy.NOW

    def _rescored(self, update: int, sampled: list[np.ndarray], rows: list[Row]) -> None:
        """The rows of one question carry the learner's log π_old now; `sampled` are the sampler's."""
        own = [row.logp_old for row in rows if not row.is_demo]
        self._gaps[update] += [np.abs(mine - theirs) for mine, theirs in zip(own, sampled, strict=True)]
        self._admit(update, rows)

    def _admit(self, update: int, rows: list[Row]) -> None:
        if update == self._update:
            self._take_in(rows)
        else:
            self._later[update].append(rows)

    def _take_in(self, rows: list[Row]) -> None:
        """The rows of one question of the update under way."""
        self._counts["rows"] += len(rows)
        self._counts["demos"] += sum(row.is_demo for row in rows)
        if self._scoring is None:
            self._take(rows)
        else:
            self._scoring.add(rows, self._take)

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
        # The scorer's answer goes to the learner without passing through here.
        refs = [
            None if self._reference is None else next(self._reference).logprobs.remote(pack) for pack in packs
        ]
        old = self._old_policy(self._update)
        arguments = [(pack, ref, old) for pack, ref in zip(packs, refs, strict=True)]
        self._pending += self.ranks.send_each("accumulate", arguments)

    async def finish(self, learning_rate: float, critic_learning_rate: float = 0.0) -> UpdateResult:
        """Send what is left, step, and wait for it; then the next update begins with what waits for it.

        Collective over the ranks, rows or none.
        """
        for scoring in (self._own_scoring, self._scoring):
            if scoring is not None:
                await scoring.finish()
        # By question: the official mode lays rows out, so its gradient would depend on who came in first.
        self._weigh(sorted(self._rows, key=lambda row: row.question_id))
        for packs in self._packer.last_rounds():
            self._send(packs)
        steps = [self._step(self.ranks, self._pending, learning_rate)]
        if self.critic is not None:
            steps.append(self._step(self.critic, self._critic_pending, critic_learning_rate))
        reports, *critic_reports = await asyncio.gather(*steps)
        result = self._result(reports, critic_reports[0] if critic_reports else [])
        self._update = (self._update + 1) % self._updates_per_step
        self._begin_update()
        return result

    def _result(self, reports: list[UpdateReport], critic: list[UpdateReport]) -> UpdateResult:
        assert self._begin is not None
        sums, largest = [*self._sums, *(report.stats for report in reports)], [r.peaks for r in reports]
        if gaps := self._gaps.pop(self._update, []):
            gap = np.concatenate(gaps)
            sums.append({"policy/logp_gap_mean": (float(gap.sum(dtype=np.float64)), gap.size)})
            largest.append({"policy/logp_gap_max": float(gap.max())})
        metrics = means(sums) | peaks(largest) | {"optim/grad_norm": reports[0].grad_norm}
        if critic:
            metrics |= means(report.stats for report in critic) | {"critic/grad_norm": critic[0].grad_norm}
        spans = {name: report.spans for name, report in zip(self.ranks.names, reports, strict=True)}
        if self.critic is not None:
            spans |= {name: report.spans for name, report in zip(self.critic.names, critic, strict=True)}
        return UpdateResult(
            metrics=metrics,
            num_tokens=sum(report.num_tokens for report in reports),
            num_rows=self._counts["rows"],
            num_demo_rows=self._counts["demos"],
            num_skipped_rows=self._counts["skipped"],
            seconds=time.perf_counter() - self._begin,
            busy_s=max(report.busy_s for report in reports),
            skipped=reports[0].skipped,
            critic_skipped=critic[0].skipped if critic else None,
            spans=spans,
        )

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
