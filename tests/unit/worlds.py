"""Policies that can be enumerated: a softmax bandit, and a tree of tokens with responses of different lengths.

All groups of n responses are listed with their probabilities, so what the meter estimates is known exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
import torch

from hpt_ray.tools.measure.gradients import Meter, Method
from hpt_ray.tools.measure.projection import Projection
from hpt_ray.types import Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout, Sample

BANDIT = tuple((arm,) for arm in range(4))
TREE = ((1,), (0, 1), (0, 0, 1), (0, 0, 0))


@dataclass(frozen=True)
class World:
    """`leaves`: all responses; `rewards` [prompts, leaves]; `demo`: the demonstration. θ are logits by prefix."""

    leaves: Sequence[tuple[int, ...]]
    theta: torch.Tensor
    rewards: np.ndarray
    demo: int
    old: torch.Tensor | None = None  # logits that rollouts are drawn from; None: θ

    @classmethod
    def make(
        cls,
        leaves: Sequence[tuple[int, ...]],
        rewards: Sequence[Sequence[float]],
        *,
        demo: int = 0,
        old: bool = False,
    ) -> World:
        random = torch.Generator().manual_seed(7)
        prefixes = {leaf[:t] for leaf in leaves for t in range(len(leaf))}
        width = 1 + max(token for leaf in leaves for token in leaf)
        theta = torch.randn(len(prefixes), width, generator=random, dtype=torch.float64)
        sampler = theta + torch.randn(theta.shape, generator=random, dtype=torch.float64) if old else None
        return cls(leaves, theta.requires_grad_(), np.array(rewards, float), demo, sampler)

    def logprobs(self, logits: torch.Tensor, leaf: tuple[int, ...]) -> torch.Tensor:
        prefixes = sorted({each[:t] for each in self.leaves for t in range(len(each))})
        nodes = [prefixes.index(leaf[:t]) for t in range(len(leaf))]
        return torch.log_softmax(logits, -1)[nodes, list(leaf)]

    def score(self, samples: Sequence[Sample], entropy_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts have one token; what follows it is a leaf, or the beginning of one."""
        parts = []
        for sample in samples:
            begun = self.logprobs(self.theta, tuple(sample.token_ids[1:].tolist()))
            parts.append(begun[sample.prompt_length - 1 :])
        logprobs = torch.cat(parts)
        return logprobs, torch.zeros_like(logprobs).detach()

    @property
    def chances(self) -> np.ndarray:
        """[leaves] of the sampler."""
        logits = self.theta.detach() if self.old is None else self.old
        return np.array([float(self.logprobs(logits, leaf).sum().exp()) for leaf in self.leaves])

    def scores(self) -> np.ndarray:
        """[leaves, θ] ∇ log π_θ of each response."""
        logprobs = (self.logprobs(self.theta, leaf).sum() for leaf in self.leaves)
        return np.stack([torch.autograd.grad(value, self.theta)[0].numpy().ravel() for value in logprobs])

    def truth(self) -> np.ndarray:
        """[prompts, θ] the gradient of each prompt's expected reward under π_θ, by enumeration."""
        chances = np.array(
            [float(self.logprobs(self.theta.detach(), leaf).sum().exp()) for leaf in self.leaves]
        )
        return (self.rewards * chances) @ self.scores()

    def group(self, prompt: int, picks: Sequence[int]) -> Group:
        old = self.theta.detach() if self.old is None else self.old
        rollouts = [
            Rollout(
                "q", i, np.array(leaf, np.int32), self.logprobs(old, leaf).numpy(), FinishReason.STOP, 0, ""
            )
            for i, leaf in enumerate(self.leaves[pick] for pick in picks)
        ]
        results = [
            RewardResult(r, Outcome.CORRECT if r >= 1 else Outcome.WRONG)
            for r in self.rewards[prompt][list(picks)]
        ]
        demonstration = Demonstration(np.array(self.leaves[self.demo], np.int32), "")
        return Group(Prompt("q", np.zeros(1, np.int32), "", "", "", demonstration), rollouts, results)

    def enumerated(self, methods: Mapping[str, Method], num_rollouts: int) -> Enumerated:
        meter = Meter(self.score, {"theta": self.theta}, Projection(self.theta.numel(), seed=0))
        every = list(combinations_with_replacement(range(len(self.leaves)), num_rollouts))
        drawn = [
            [meter.draw(methods, self.group(p, picks)) for picks in every] for p in range(len(self.rewards))
        ]
        gradients = {
            name: np.array([[each[name].gradient for each in of_prompt] for of_prompt in drawn])
            for name in methods
        }
        return Enumerated(
            np.array([orders(picks) * prod(self.chances[list(picks)]) for picks in every]),
            gradients,
            np.stack([projected(self, row) for row in self.truth()]),
        )


def orders(picks: Sequence[int]) -> int:
    """In how many orders the same responses can be drawn; no method here tells them apart."""
    return factorial(len(picks)) // prod(factorial(count) for count in Counter(picks).values())


def projected(world: World, vector: np.ndarray) -> np.ndarray:
    return Projection(world.theta.numel(), seed=0)([("theta", torch.from_numpy(vector))])


@dataclass(frozen=True)
class Enumerated:
    """All groups: their chances [groups], each method's gradients [prompts, groups, D], the truth [prompts, D]."""

    chances: np.ndarray
    gradients: Mapping[str, np.ndarray]
    truth: np.ndarray

    def moments(self, name: str) -> tuple[np.ndarray, float]:
        """The exact mean over prompts and groups, and E|g|²."""
        of_prompts = np.einsum("g,pgd->pd", self.chances, self.gradients[name])
        squares = np.einsum("g,pgd->p", self.chances, self.gradients[name] ** 2)
        return of_prompts.mean(0), float(squares.mean())

    def draw(
        self, name: str, random: np.random.Generator, num_prompts: int, num_draws: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which prompts were drawn [P], their mean gradients [P, D] and mean squared lengths [P]."""
        prompts = random.integers(len(self.truth), size=num_prompts)
        groups = random.choice(len(self.chances), size=(num_prompts, num_draws), p=self.chances)
        found = self.gradients[name][prompts[:, None], groups]
        return prompts, found.mean(1), np.square(found).sum(-1).mean(1)
