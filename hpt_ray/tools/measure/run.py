"""A measurement: prompts, rollouts, gradients, and what they say, set by set.

Every prompt gets three lots of rollouts, which share nothing: `draws` groups that all methods are measured on,
`reference` rollouts for the true gradient, and a few that say which set the prompt belongs to. Without the last, the
prompts of a set would be those whose reference was lucky. Methods whose rollouts continue prefixes of the
demonstration draw those in addition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from hpt_ray.algorithms import Estimator
from hpt_ray.algorithms.prefixes import PREFIX_RULES, prefix_of, search
from hpt_ray.config.schema import Config
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.service import GradeItem, VerifierService
from hpt_ray.rollout.requests import sampling_seed
from hpt_ray.tools.measure.estimate import LEAST_PROMPTS, Interval, quality
from hpt_ray.tools.measure.gradients import Cost, Drawn, Meter, Method
from hpt_ray.tools.measure.policy import NO_PREFIX, Policy
from hpt_ray.tools.measure.projection import Projection
from hpt_ray.types import FinishReason, Group, Prompt, RewardResult, Rollout

REFERENCE_GROUP = 32  # rollouts that are compared with each other, and go through the model together
SORTING = 16  # rollouts that say which set a prompt belongs to
# By the share of correct rollouts, as counts of `SORTING`.
SETS = {"all": (0, 16), "unsolved": (0, 1), "half-solved": (2, 14), "solved": (15, 16)}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked of the model, prompt by prompt."""

    group_size: int
    draws: int  # groups
    reference: int  # rollouts of the true gradient
    dimensions: int  # of a projected gradient


class RewardFunctions:
    """The reward functions of a run, in this process's own pool."""

    def __init__(self, config: Config):
        self._service = VerifierService(config.reward, config.data.max_response_tokens)

    def grade(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[RewardResult]:
        row = Row.of(prompt)
        items = [
            GradeItem(r.text, prompt.ground_truth, row, r.finish is FinishReason.STOP, len(r.token_ids))
            for r in rollouts
        ]
        return asyncio.run(self._service.grade(items))

    def close(self) -> None:
        self._service.close()


@dataclass(frozen=True, slots=True)
class Measured:
    """What one prompt came to."""

    num_correct: int  # of `SORTING`
    truth: np.ndarray  # [D], its true gradient
    means: Mapping[str, np.ndarray]  # method → mean of the draws' gradients, [D]
    squares: Mapping[str, float]  # method → mean of their squared lengths
    costs: Mapping[str, Cost]
    rollouts: int
    sampling_s: float
    forward_tokens: int
    forward_s: float


class Measurer:
    """All methods on one prompt after another. Its measured groups come from `sampler`, an older policy or the same;
    all other rollouts from `policy`."""

    def __init__(
        self,
        policy: Policy,
        sampler: Policy,
        rewards: RewardFunctions,
        methods: Mapping[str, Method],
        sizes: Sizes,
        seed: int,
    ):
        self._policy, self._sampler, self._rewards = policy, sampler, rewards
        self._methods, self._sizes, self._seed = methods, sizes, seed
        self._projection = Projection(sizes.dimensions, seed)
        self._rollouts, self._sampling_s = 0, 0.0

    def measure(self, prompt: Prompt) -> Measured:
        self._rollouts, self._sampling_s = 0, 0.0
        meter = Meter(self._policy.score, self._policy.parameters, self._projection)
        num_correct = self._groups(self._policy, prompt, 1, SORTING, "set")[0].num_correct
        num_references = -(-self._sizes.reference // REFERENCE_GROUP)
        truth = meter.reference(
            self._groups(self._policy, prompt, num_references, REFERENCE_GROUP, "reference")
        )
        groups = self._groups(self._sampler, prompt, self._sizes.draws, self._sizes.group_size, "draw")
        drawn = [self._draw(meter, group, f"draw {i}") for i, group in enumerate(groups)]
        gradients = {name: np.stack([each[name].gradient for each in drawn]) for name in self._methods}
        return Measured(
            num_correct,
            truth,
            means={name: of_draws.mean(0) for name, of_draws in gradients.items()},
            squares={
                name: float(np.square(g, dtype=np.float64).sum(1).mean()) for name, g in gradients.items()
            },
            costs={name: sum((each[name].cost for each in drawn), Cost()) for name in self._methods},
            rollouts=self._rollouts,
            sampling_s=self._sampling_s,
            forward_tokens=meter.forward_tokens,
            forward_s=meter.forward_seconds,
        )

    def _draw(self, meter: Meter, group: Group, what: str) -> dict[str, Drawn]:
        """All methods: on `group`, or on rollouts of their own where these continue prefixes."""
        plain = {name: each for name, each in self._methods.items() if each.estimator.prefixes is None}
        drawn = meter.draw(plain, group) if plain else {}
        for name in self._methods.keys() - plain.keys():
            estimator = self._methods[name].estimator
            drawn |= meter.draw(
                {name: self._methods[name]}, self._continued(estimator, group, f"{what} {name}")
            )
        return drawn

    def _continued(self, estimator: Estimator, group: Group, what: str) -> Group:
        """`group` as a method has it whose rollouts continue prefixes, in its first step."""
        prompt, size = group.prompt, len(group.rollouts)
        if estimator.searches_prefixes:
            while length := search(group):
                assert prompt.demonstration is not None, f"{prompt.id} has no demonstration to continue"
                before = [replace(rollout, superseded=True) for rollout in group.rollouts]
                prefix = prompt.demonstration.token_ids[:length]
                (more,) = self._groups(self._sampler, prompt, 1, size, f"{what} {len(before)}", prefix)
                group = Group(prompt, before + more.rollouts, group.results + more.results)
            return group
        assert estimator.prefixes is not None, f"{estimator.name} has no prefixes"
        prefix = prefix_of(prompt, estimator.prefixes, 0, sampling_seed(self._seed, what, prompt.id, 0))
        if not len(prefix):
            return group
        kept = size - 1 if PREFIX_RULES[estimator.prefixes.rule].only_last else 0
        (more,) = self._groups(self._sampler, prompt, 1, size - kept, what, prefix)
        return Group(prompt, group.rollouts[:kept] + more.rollouts, group.results[:kept] + more.results)

    def _groups(
        self,
        policy: Policy,
        prompt: Prompt,
        count: int,
        size: int,
        what: str,
        prefix: np.ndarray = NO_PREFIX,
    ) -> list[Group]:
        """`count` graded groups of `size` rollouts; those of another `what` share nothing with them."""
        began = perf_counter()
        rollouts = policy.sample(prompt, count * size, what, prefix)
        self._sampling_s += perf_counter() - began
        self._rollouts += len(rollouts)
        results = self._rewards.grade(prompt, rollouts)
        starts = range(0, count * size, size)
        return [Group(prompt, rollouts[i : i + size], results[i : i + size]) for i in starts]


def summarise(found: Iterable[Measured]) -> dict[str, Any]:
    """{set: {prompts, solve_rate, methods: {name: {quantity: interval}}}} and the cost; `found` is read as it comes."""
    began = perf_counter()
    prompts = list(found)
    seconds = perf_counter() - began
    rollouts = sum(each.rollouts for each in prompts)
    per_rollout = sum(each.sampling_s for each in prompts) / max(rollouts, 1)
    per_token = sum(each.forward_s for each in prompts) / max(sum(each.forward_tokens for each in prompts), 1)
    counts = np.array([each.num_correct for each in prompts])
    sets = {}
    for name, (low, high) in SETS.items():
        members = [prompts[i] for i in np.flatnonzero((low <= counts) & (counts <= high))]
        sets[name] = {"prompts": len(members), "methods": {}}
        if len(members) >= LEAST_PROMPTS:
            sets[name] |= {
                "solve_rate": float(np.mean([each.num_correct for each in members])) / SORTING,
                "methods": {
                    method: _quality(
                        members,
                        method,
                        sum((each.costs[method] for each in prompts), Cost()),
                        per_rollout,
                        per_token,
                    )
                    for method in prompts[0].means
                },
            }
    cost = {"seconds": seconds, "rollouts": rollouts, "seconds_per_rollout": per_rollout}
    return {"sets": sets, "cost": cost}


def _quality(
    members: Sequence[Measured], method: str, cost: Cost, per_rollout: float, per_token: float
) -> dict[str, Any]:
    """Every quantity of one method on some of the prompts; `cost` is that of all."""
    means, squares = (
        np.stack([each.means[method] for each in members]),
        np.array([each.squares[method] for each in members]),
    )
    measured = quality(means, squares, np.stack([each.truth for each in members]))
    samples = (cost.rollouts + cost.demonstrations) / cost.draws
    measured["snr_per_sample"] = measured["snr"].over(samples)
    measured["snr_per_second"] = measured["snr"].over(cost.seconds_each(per_rollout, per_token))
    return {quantity: as_json(interval) for quantity, interval in measured.items()}


def as_json(interval: Interval) -> dict[str, float] | None:
    """None where the data do not determine it."""
    return asdict(interval) if interval.known else None
