"""The driver's side of the learner: samples in, optimizer steps and weights out.

Samples are weighed by the estimator, packed, and sent to the ranks as soon as a round of micro-batches is full;
the backward pass therefore runs while other prompts are still being generated. Where a denominator
needs all samples of the update (a token mean), weighing waits for `finish`. Where samples must be scored first
(PPO, KL in the reward, log π_old of later updates), they take the way through `SampleScoring`, and a critic
steps with the policy. The order of micro-batches and sums is that of `add`, whatever comes back first.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import ray

from hpt_ray.algorithms import BatchShape, Estimator
from hpt_ray.cluster.actor_group import ActorGroup, wait_all
from hpt_ray.learner.base import UpdateReport
from hpt_ray.learner.packing import Packer, dummy_micro_batch
from hpt_ray.learner.policy import OldPolicy
from hpt_ray.learner.reference import ReferenceScores
from hpt_ray.learner.scoring import SampleScoring, needs_reference_scores, needs_scores, weight_samples
from hpt_ray.learner.sums import Sums, means, peaks
from hpt_ray.types import MicroBatch, Sample, UpdateResult


class LearnerGroup:
    """All learner ranks as one optimizer, and the critic's beside them where there is one.

    A step is `updates_per_step` updates. Samples of a later update may be added ahead of time; they wait.
    With `recompute_old_logprobs` they must be added before the step's first `finish`: they are scored with the
    weights before it, which are π_old for the whole step. `reference` has the frozen policy: workers of its own, or
    `ranks` themselves where they train adapters. `sequence_parallel` ranks in a row, of the critic too, share each
    micro-batch, and the first of them reports on it.
    """

    def __init__(
        self,
        ranks: ActorGroup,
        estimator: Estimator,
        *,
        batch: BatchShape,
        max_tokens_per_micro_batch: int,
        timeout_s: float,
        reference: ActorGroup | None = None,
        critic: ActorGroup | None = None,
        updates_per_step: int = 1,
        recompute_old_logprobs: bool = False,
        sequence_parallel: int = 1,
    ):
        self.ranks, self.critic = ranks, critic
        self._estimator, self._batch, self._timeout_s = estimator, batch, timeout_s
        self._max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self._all_reference, self._updates_per_step = reference, updates_per_step
        self._recompute, self._sequence_parallel = recompute_old_logprobs, sequence_parallel
        self._scoring: SampleScoring | None = None
        self._own_scoring: SampleScoring | None = None
        self.reset()

    def begin_step(self, steps_done: int) -> None:
        """Samples are weighed as the algorithm weighs them after so many steps of its phase."""
        self._estimator = self._estimator.at(steps_done)

    def reset(self) -> None:
        """Begin a step anew: samples, micro-batches and scores of the one under way are forgotten."""
        for scoring in (self._scoring, self._own_scoring):
            if scoring is not None:
                scoring.cancel()
        tokens, sharing = self._max_tokens_per_micro_batch, self._sequence_parallel
        self._packer = Packer(
            num_ranks=len(self.ranks),
            max_tokens_per_micro_batch=tokens,
            dummy=dummy_micro_batch(len(self._estimator.terms)),
            sequence_parallel=sharing,
        )
        make = partial(
            SampleScoring,
            max_tokens_per_micro_batch=tokens,
            timeout_s=self._timeout_s,
            sequence_parallel=sharing,
        )
        reference = None
        if (all_reference := self._all_reference) is not None:
            is_own = all_reference is self.ranks
            reference = ReferenceScores(all_reference, of_learner=is_own, sequence_parallel=sharing)
        if needs_scores(self._estimator):
            before = needs_reference_scores(self._estimator)
            self._scoring = make(critic=self.critic, reference=reference if before else None)
            reference = None if before else reference  # a loss asks it micro-batch by micro-batch
        if self._recompute:
            self._own_scoring = make(policy=self.ranks)
        self._reference = reference
        self._update = 0
        self._later: defaultdict[int, list[list[Sample]]] = defaultdict(list)  # update -> prompts that wait
        self._gaps: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # update -> of tokens scored again
        self._begin_update()

    def _begin_update(self) -> None:
        self._samples: list[Sample] = []  # only where weighing waits
        self._pending: list[Any] = []
        self._critic_pending: list[Any] = []
        self._num_seen = 0  # of `_pending`, the first ones, which have ended well
        self._counts = {"samples": 0, "demos": 0, "skipped": 0}
        self._sums: list[Sums] = []
        self._begin: float | None = None
        for samples in self._later.pop(self._update, ()):
            self._take_in(samples)

    def add(self, samples: list[Sample], update: int | None = None) -> None:
        """Take in the samples of one prompt for an update of the step; default: the one under way.

        Sends what fills a round of micro-batches.
        """
        update = self._update if update is None else update
        assert self._update <= update < self._updates_per_step, (
            f"samples of update {update} in {self._update}"
        )
        if self._old_policy(update) is OldPolicy.SCORED:
            assert self._own_scoring is not None
            assert self._update == 0, "π_old is the policy before the first update: add all samples before it"
            sampled = [sample.old_logprobs for sample in samples if not sample.is_demo]
            self._own_scoring.add(samples, partial(self._rescored, update, sampled))
        else:
            self._admit(update, samples)

    def rehearse(self, samples: list[Sample]) -> None:
        """Take in rows of rehearsal for the update under way. They are weighed apart: no other Z counts them."""
        if samples:
            self._weigh(samples)

    def raise_failures(self) -> None:
        """What a pass that was sent has raised, for want of memory say: the step can end before its last rollout."""
        while self._num_seen < len(self._pending):
            ref = self._pending[self._num_seen]
            if not ray.wait([ref], timeout=0)[0]:
                return
            ray.get(ref)
            self._num_seen += 1

    def _old_policy(self, update: int) -> OldPolicy:
        if not self._recompute:
            return OldPolicy.SAMPLER
        # A reward or advantage that holds log π_old needs it before the pass that could give it.
        return OldPolicy.SCORED if update or needs_reference_scores(self._estimator) else OldPolicy.NOW

    def _rescored(self, update: int, sampled: list[np.ndarray], samples: list[Sample]) -> None:
        """The samples of one prompt carry the learner's log π_old now; `sampled` are the sampler's."""
        own = [sample.old_logprobs for sample in samples if not sample.is_demo]
        self._gaps[update] += [np.abs(mine - theirs) for mine, theirs in zip(own, sampled, strict=True)]
        self._admit(update, samples)

    def _admit(self, update: int, samples: list[Sample]) -> None:
        if update == self._update:
            self._take_in(samples)
        else:
            self._later[update].append(samples)

    def _take_in(self, samples: list[Sample]) -> None:
        """The samples of one prompt of the update under way."""
        self._counts["samples"] += len(samples)
        self._counts["demos"] += sum(sample.is_demo for sample in samples)
        if self._scoring is None:
            self._take(samples)
        else:
            self._scoring.add(samples, self._take)

    def _take(self, samples: list[Sample]) -> None:
        """The samples of one prompt, scored where that is asked for."""
        if self._estimator.needs_all_samples:
            self._samples += samples
        else:
            self._weigh(samples)

    def _weigh(self, samples: list[Sample]) -> None:
        weighed = weight_samples(self._estimator, samples, self._batch)
        self._counts["skipped"] += weighed.num_skipped
        self._sums.append(weighed.sums)
        self._packer.add(weighed.samples)
        for micro_batches in self._packer.full_rounds():
            self._send(micro_batches)
        if self._scoring is not None:
            self._critic_pending += self._scoring.train()

    def _send(self, micro_batches: list[MicroBatch]) -> None:
        if self._begin is None:
            self._begin = time.perf_counter()
        # The reference's scores go to the learner without passing through here.
        refs: list[Any] = [None] * len(micro_batches)
        if self._reference is not None:
            refs, _ = self._reference.send(micro_batches)
        old = self._old_policy(self._update)
        arguments = [(micro_batch, ref, old) for micro_batch, ref in zip(micro_batches, refs, strict=True)]
        self._pending += self.ranks.send_each("accumulate", arguments)

    async def finish(self, learning_rate: float, critic_learning_rate: float = 0.0) -> UpdateResult:
        """Send what is left, step, and wait for it; then the next update begins with what waits for it.

        Collective over the ranks, samples or none.
        """
        for scoring in (self._own_scoring, self._scoring):
            if scoring is not None:
                await scoring.finish()
        # By prompt: the official mode lays samples out, so its gradient would depend on who came in first.
        self._weigh(sorted(self._samples, key=lambda sample: sample.prompt_id))
        for micro_batches in self._packer.last_rounds():
            self._send(micro_batches)
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
        sums.append({"loss/total": (0.0, 1)})
        if gaps := self._gaps.pop(self._update, []):
            gap = np.concatenate(gaps)
            sums.append({"policy/logprob_gap_mean": (float(gap.sum(dtype=np.float64)), gap.size)})
            largest.append({"policy/logprob_gap_max": float(gap.max())})
        metrics = means(sums) | peaks(largest) | {"optim/grad_norm": reports[0].grad_norm}
        if self._estimator.mu_now is not None:
            metrics["selection/mu"] = self._estimator.mu_now
        if critic:
            metrics |= means(report.stats for report in critic) | {"critic/grad_norm": critic[0].grad_norm}
        spans = {name: report.spans for name, report in zip(self.ranks.names, reports, strict=True)}
        if self.critic is not None:
            spans |= {name: report.spans for name, report in zip(self.critic.names, critic, strict=True)}
        return UpdateResult(
            metrics=metrics,
            num_tokens=sum(report.num_tokens for report in reports),
            num_samples=self._counts["samples"],
            num_demo_samples=self._counts["demos"],
            num_skipped_samples=self._counts["skipped"],
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
