"""Eval sets inside training: sampled on the rollout workers, graded by the reward function of training.

In: prompt sets by name. Out: the share of correct responses of each set. All sets are sampled in one go, so the
engines stay full until the last prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpt_ray.algorithms.gates import samples_of
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.learner.packing import Packer, WeightedSample, dummy_micro_batch
from hpt_ray.learner.scoring import NO_TERMS
from hpt_ray.reward.groups import graded_groups
from hpt_ray.rollout.requests import Sampling, request_for
from hpt_ray.rollout.router import Router
from hpt_ray.types import Decision, Group, Prompt


@dataclass(frozen=True)
class EvalSets:
    """The prompts of every set, by the set's name."""

    sets: Mapping[str, Sequence[Prompt]]
    samples: int
    sampling: Sampling
    seed: int
    timeout_s: float

    async def scores(
        self, router: Router, verifier: ActorGroup
    ) -> tuple[dict[str, float], dict[str, list[Group]]]:
        """`eval/<set>/mean`: the share of responses that are correct, over prompts and samples.

        Where rewards failed, those responses count as not correct, and `eval/<set>/failure_share` says how many.
        Extra reward terms (length, format) are not in it: it is what `hpt_ray.cli.evaluate` reports too. And the
        graded responses of each set, in the order of its prompts.
        """
        prompts = {f"{name}#{i}": q for name, qs in self.sets.items() for i, q in enumerate(qs)}
        requests = [
            # The same seeds at every evaluation: two evaluations differ by the weights alone.
            request_for(key, q.token_ids, num_samples=self.samples, run_seed=self.seed, step="evaluation")
            for key, q in prompts.items()
        ]
        found: dict[str, Group] = {}
        async for group in graded_groups(
            router.generate(requests, self.sampling),
            prompts,
            num_samples=self.samples,
            verifier=verifier,
            timeout_s=self.timeout_s,
        ):
            found[group.rollouts[0].prompt_id] = group
        groups = {name: [found[f"{name}#{i}"] for i in range(len(qs))] for name, qs in self.sets.items()}
        results = {
            name: [result for group in of_set for result in group.results] for name, of_set in groups.items()
        }
        means = {
            f"eval/{name}/mean": float(np.mean([r.correct for r in results[name]])) for name in self.sets
        }
        failed = {name: float(np.mean([r.outcome.is_failure for r in results[name]])) for name in self.sets}
        return means | {
            f"eval/{name}/failure_share": share for name, share in failed.items() if share
        }, groups

    async def demonstration_losses(
        self, learners: ActorGroup, *, max_tokens_per_micro_batch: int, sequence_parallel: int = 1
    ) -> dict[str, float]:
        """`eval/<set>/demonstration_loss`: mean −log π over the tokens of the set's demonstrations.

        A set without demonstrations has no such loss and is left out.
        """
        losses = {}
        for name, prompts in self.sets.items():
            packer = Packer(
                num_ranks=len(learners),
                max_tokens_per_micro_batch=max_tokens_per_micro_batch,
                dummy=dummy_micro_batch(0),
                sequence_parallel=sequence_parallel,
            )
            for prompt in prompts:
                if prompt.demonstration is not None:
                    packer.add(_demonstration(prompt))
            total, count = 0.0, 0
            for micro_batches in packer.last_rounds():
                refs = learners.send_each("logprobs", [(micro_batch,) for micro_batch in micro_batches])
                logprobs = await learners.wait(refs, "score demonstrations", self.timeout_s)
                scored = list(zip(micro_batches, logprobs, strict=True))
                for micro_batch, (logprob, _) in scored[::sequence_parallel]:
                    if not micro_batch.is_dummy:
                        total -= float(logprob.astype(np.float64).sum())
                        count += len(logprob)
            if count:
                losses[f"eval/{name}/demonstration_loss"] = total / count
        return losses


def _demonstration(prompt: Prompt) -> list[WeightedSample]:
    decision = Decision(0.0, 1.0, 0, 0, "evaluation")
    return [
        WeightedSample(sample, *NO_TERMS) for sample in samples_of(Group(prompt, [], []), decision, index=0)
    ]
