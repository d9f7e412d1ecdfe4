"""Held-out sets inside training: answered by the rollout workers, graded by the grader of training.

In: question sets by name. Out: the share of correct answers of each set. All sets are answered in one go, so the
engines stay full until the last question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpt_ray.algorithms.rows import rows_of
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.learner.packing import Packer, WeighedRow, dummy_pack
from hpt_ray.reward.groups import graded_groups
from hpt_ray.rollout.requests import Sampling, request_for
from hpt_ray.rollout.router import RolloutPool
from hpt_ray.types import Decision, Group, Question


@dataclass(frozen=True)
class HeldOut:
    """The questions of every set, by the set's name."""

    sets: Mapping[str, Sequence[Question]]
    samples: int
    sampling: Sampling
    seed: int
    timeout_s: float

    async def scores(self, pool: RolloutPool, verifier: ActorGroup) -> dict[str, float]:
        """`eval/<set>/mean`: the share of answers that are correct, over questions and samples.

        Extra reward terms (length, format) are not in it: it is what `hpt_ray.cli.evaluate` reports too.
        """
        questions = {f"{name}#{i}": q for name, qs in self.sets.items() for i, q in enumerate(qs)}
        requests = [
            # The same seeds at every evaluation: two evaluations differ by the weights alone.
            request_for(key, q.prompt_ids, num_samples=self.samples, run_seed=self.seed, step="evaluation")
            for key, q in questions.items()
        ]
        scores: defaultdict[str, list[float]] = defaultdict(list)
        set_of = {id(question): key.rpartition("#")[0] for key, question in questions.items()}
        async for group in graded_groups(
            pool.generate(requests, self.sampling),
            questions,
            num_samples=self.samples,
            verifier=verifier,
            timeout_s=self.timeout_s,
        ):
            scores[set_of[id(group.question)]] += [float(verdict.solved) for verdict in group.verdicts]
        return {f"eval/{name}/mean": float(np.mean(scores[name])) for name in self.sets}

    async def demonstration_losses(
        self, learners: ActorGroup, *, tokens_per_microbatch: int, num_terms: int
    ) -> dict[str, float]:
        """`eval/<set>/demonstration_loss`: mean −log π over the tokens of the set's demonstrations.

        A set without demonstrations has no such loss and is left out.
        """
        losses = {}
        for name, questions in self.sets.items():
            packer = Packer(
                num_ranks=len(learners),
                tokens_per_microbatch=tokens_per_microbatch,
                dummy=dummy_pack(num_terms),
            )
            for question in questions:
                if question.demonstration is not None:
                    packer.add(_demonstration(question, num_terms))
            total, count = 0.0, 0
            for packs in packer.last_rounds():
                refs = learners.send_each("logprobs", [(pack,) for pack in packs])
                answers = await learners.wait(refs, "score demonstrations", self.timeout_s)
                for pack, (logp, _) in zip(packs, answers, strict=True):
                    if not pack.is_dummy:
                        total -= float(logp.astype(np.float64).sum())
                        count += len(logp)
            if count:
                losses[f"eval/{name}/demonstration_loss"] = total / count
        return losses


def _demonstration(question: Question, num_terms: int) -> list[WeighedRow]:
    decision = Decision(0.0, 1.0, 0, 0, "evaluation")
    nothing = np.zeros((num_terms, 1)), np.zeros(num_terms)
    return [WeighedRow(row, *nothing) for row in rows_of(Group(question, [], []), decision, index=0)]
