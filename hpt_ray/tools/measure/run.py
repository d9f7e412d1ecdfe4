"""A measurement: prompts, rollouts, gradients, and what they say, set by set.

Every prompt gets three lots of rollouts, which share nothing: `draws` groups that all methods are measured on,
`reference` rollouts for the true gradient, and a few that say which set the prompt belongs to. Without the last, the
prompts of a set would be those whose reference was lucky.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from hpt_ray.config.schema import Config
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.service import GradeItem, VerifierService
from hpt_ray.tools.measure.estimate import LEAST_PROMPTS, Interval, quality
from hpt_ray.tools.measure.gradients import Cost, Drawn, Meter, Method
from hpt_ray.tools.measure.policy import Policy
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


@dataclass(slots=True)
class Draws:
    """What one method's gradients came to, prompt by prompt."""

    means: list[np.ndarray] = field(default_factory=list)  # over a prompt's draws, [D]
    squares: list[float] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def add(self, drawn: Sequence[Drawn]) -> None:
        gradients = np.stack([each.gradient for each in drawn])
        self.means.append(gradients.mean(0))
        self.squares.append(float(np.square(gradients, dtype=np.float64).sum(1).mean()))
        self.cost = sum((each.cost for each in drawn), self.cost)


class Sampling:
    """Graded groups of a policy, and what sampling them took."""

    def __init__(self, rewards: RewardFunctions):
        self._rewards = rewards
        self.rollouts, self.seconds = 0, 0.0

    def groups(self, policy: Policy, prompt: Prompt, count: int, size: int, what: str) -> list[Group]:
        """`count` groups of `size` rollouts; those of another `what` share nothing with them."""
        began = perf_counter()
        rollouts = policy.sample(prompt, count * size, what)
        self.seconds += perf_counter() - began
        self.rollouts += len(rollouts)
        results = self._rewards.grade(prompt, rollouts)
        starts = range(0, count * size, size)
        return [Group(prompt, rollouts[i : i + size], results[i : i + size]) for i in starts]


def measure(
    policy: Policy,
    sampler: Policy,
    rewards: RewardFunctions,
    prompts: Iterable[Prompt],
    methods: dict[str, Method],
    sizes: Sizes,
    seed: int,
) -> dict[str, Any]:
    """All methods on all prompts: {set: {prompts, solve_rate, methods: {name: {quantity: interval}}}} and the cost.

    The measured groups come from `sampler`, an older policy or the same; all other rollouts from `policy`.
    """
    began = perf_counter()
    meter, sampling = (
        Meter(policy.score, policy.parameters, Projection(sizes.dimensions, seed)),
        Sampling(rewards),
    )
    num_references = -(-sizes.reference // REFERENCE_GROUP)
    solved: list[int] = []
    references: list[np.ndarray] = []
    found = {name: Draws() for name in methods}
    for prompt in prompts:
        solved.append(sampling.groups(policy, prompt, 1, SORTING, "set")[0].num_correct)
        groups = sampling.groups(policy, prompt, num_references, REFERENCE_GROUP, "reference")
        references.append(meter.reference(groups))
        groups = sampling.groups(sampler, prompt, sizes.draws, sizes.group_size, "draw")
        drawn = [meter.draw(methods, group) for group in groups]
        for name, draws in found.items():
            draws.add([each[name] for each in drawn])
    per_rollout = sampling.seconds / max(sampling.rollouts, 1)
    seconds = {name: meter.seconds(draws.cost, per_rollout=per_rollout) for name, draws in found.items()}
    counts, truth = np.array(solved), np.stack(references)
    sets = {}
    for name, (low, high) in SETS.items():
        members = np.flatnonzero((low <= counts) & (counts <= high))
        sets[name] = {"prompts": len(members), "methods": {}}
        if len(members) >= LEAST_PROMPTS:
            sets[name] |= {
                "solve_rate": float(counts[members].mean()) / SORTING,
                "methods": {m: _quality(d, members, truth[members], seconds[m]) for m, d in found.items()},
            }
    cost = {
        "seconds": perf_counter() - began,
        "rollouts": sampling.rollouts,
        "seconds_per_rollout": per_rollout,
    }
    return {"sets": sets, "cost": cost}


def _quality(draws: Draws, members: np.ndarray, truth: np.ndarray, seconds: float) -> dict[str, Any]:
    """Every quantity of one method on some of the prompts."""
    means, squares = np.stack([draws.means[i] for i in members]), np.array(draws.squares)[members]
    measured = quality(means, squares, truth)
    samples = (draws.cost.rollouts + draws.cost.demonstrations) / draws.cost.draws
    measured["snr_per_sample"] = measured["snr"].over(samples)
    measured["snr_per_second"] = measured["snr"].over(seconds)
    return {quantity: as_json(interval) for quantity, interval in measured.items()}


def as_json(interval: Interval) -> dict[str, float] | None:
    """None where the data do not determine it."""
    return asdict(interval) if interval.known else None
