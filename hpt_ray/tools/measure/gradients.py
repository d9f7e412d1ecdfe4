"""The gradient that each method makes of one prompt's rollouts, by the functions that training uses.

A method is an estimator with a gate. Those that are given the same graded rollouts share one forward pass; the gate,
`Estimator.weigh` and `Estimator.loss` are those of a run, for an optimizer step of a single prompt. The reference is
`rloo` on rollouts of its own: with a leave-one-out baseline it is the policy gradient of the expected reward
without bias (arXiv 2402.14740), and the more rollouts, the less noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from hpt_ray.algorithms import GATES, BatchShape, Estimator, TokenBatch, make_estimator
from hpt_ray.algorithms.gates import samples_of
from hpt_ray.tools.measure.projection import Projection
from hpt_ray.types import Decision, Group, Sample, can_train

Array = np.ndarray
# Samples → log π_θ [R] and entropy [R] of all their response tokens, with gradient (of the entropy: where asked).
Scorer = Callable[[Sequence[Sample], bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Method:
    """An algorithm with its gate. `max_response_tokens` is C, unless the algorithm has its own."""

    estimator: Estimator
    gate: str
    gamma: float
    max_response_tokens: int

    @classmethod
    def of(cls, estimator: Estimator, max_response_tokens: int, *, gamma: float = 0.0) -> Method:
        """With the algorithm's own gate."""
        return cls(estimator, estimator.gate, gamma, max_response_tokens)


@dataclass(slots=True)
class Cost:
    """What a method took, over all prompts and draws."""

    draws: int = 0
    rollouts: int = 0  # sampled, whether they train or not
    demonstrations: int = 0
    tokens: int = 0  # of prompts and responses that go forward and backward
    seconds: float = 0.0  # backward

    def seconds_each(self, per_rollout: float, per_token: float) -> float:
        """Of one draw: sampling, forward at `per_token` seconds, and backward."""
        return (self.rollouts * per_rollout + self.tokens * per_token + self.seconds) / max(self.draws, 1)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Drawn:
    """One gradient of one method: projected, in the direction of ascent."""

    gradient: Array
    cost: Cost


class Meter:
    """Gradients of one policy, given by its scorer and its parameters."""

    def __init__(self, scorer: Scorer, parameters: Mapping[str, Tensor], projection: Projection):
        self._scorer, self._parameters, self._projection = scorer, parameters, projection
        self.forward_seconds, self.forward_tokens = 0.0, 0

    def draw(self, methods: Mapping[str, Method], group: Group) -> dict[str, Drawn]:
        """The gradients of all methods on one group. The prompt's demonstration is used where there is one; by
        methods whose rollouts continue prefixes of it, as far as these do."""
        sampled, pairs = len(group.rollouts), [pair for pair in group.pairs if can_train(*pair)]
        group = Group(group.prompt, [rollout for rollout, _ in pairs], [result for _, result in pairs])
        estimators = [method.estimator for method in methods.values()]
        has_demo = group.prompt.demonstration is not None and all(e.prefixes is None for e in estimators)
        samples = samples_of(
            group,
            Decision(1.0, float(has_demo), group.num_correct, len(pairs), ""),
            index=0,
            prefixes=any(estimator.trains_prefixes for estimator in estimators),
        )
        entropy_grad = any(method.estimator.entropy_coef for method in methods.values())
        began = perf_counter()
        logprobs, entropy = self._scorer(samples, entropy_grad)
        self.forward_seconds += perf_counter() - began
        self.forward_tokens += sum(len(sample.token_ids) for sample in samples)
        return {
            name: self._one(method, group, sampled, samples, logprobs, entropy)
            for name, method in methods.items()
        }

    def _one(
        self,
        method: Method,
        group: Group,
        sampled: int,
        samples: Sequence[Sample],
        logprobs: Tensor,
        entropy: Tensor,
    ) -> Drawn:
        estimator, kind = method.estimator, GATES[method.gate]
        num_rollouts = estimator.num_rollouts(len(group.rollouts)) if kind.needs_rollouts else 0
        seen = replace(group, rollouts=group.rollouts[:num_rollouts], results=group.results[:num_rollouts])
        decision = kind.function(seen, method.gamma, ())
        of_demo = decision.demo_weight if estimator.prefixes is None else decision.rollout_weight
        weights = np.array([of_demo if s.is_demo else decision.rollout_weight for s in samples], np.float64)
        weights[num_rollouts : len(group.rollouts)] = 0
        num_sampled = estimator.num_rollouts(sampled) if kind.needs_rollouts else 0
        cost = Cost(1, num_sampled, int(decision.demo_weight > 0))
        kept = np.flatnonzero(weights)
        batch = _tokens_of(samples, kept, logprobs, entropy)
        if batch is None:
            return Drawn(np.zeros(self._projection.dimensions, np.float32), cost)
        weighed = estimator.weigh(
            batch.sample_lengths,
            batch.group_ids,
            batch.rewards,
            batch.is_demo,
            weights[kept],
            BatchShape(1, num_rollouts, method.max_response_tokens),
            prompt_lengths=batch.prompt_lengths,
        )
        counts = weighed.counts(batch.sample_lengths.numpy())
        cost.tokens = sum(len(samples[i].token_ids) for i in kept[counts])
        began = perf_counter()
        loss, _ = estimator.loss(batch, weighed)
        gradients = torch.autograd.grad(-loss, list(self._parameters.values()), retain_graph=True)
        cost.seconds = perf_counter() - began
        return Drawn(self._projection(zip(self._parameters, gradients, strict=True)), cost)

    def reference(self, groups: Sequence[Group]) -> Array:
        """The policy gradient of one prompt's expected reward [D], from groups that nothing else has used."""
        method = Method.of(make_estimator("rloo"), 1)
        return np.mean([self.draw({"": method}, group)[""].gradient for group in groups], axis=0)


def _tokens_of(
    samples: Sequence[Sample], kept: Array, logprobs: Tensor, entropy: Tensor
) -> TokenBatch | None:
    """What the estimator reads, of the samples numbered `kept`; None: of none."""
    if not len(kept):
        return None
    lengths = np.array([sample.response_length for sample in samples])
    inside = torch.from_numpy(np.isin(np.repeat(np.arange(len(samples)), lengths), kept)).to(logprobs.device)
    chosen = [samples[i] for i in kept]
    return TokenBatch(
        logprobs=logprobs[inside],
        old_logprobs=torch.from_numpy(np.concatenate([s.old_logprobs for s in chosen])).to(logprobs),
        sample_lengths=torch.tensor([s.response_length for s in chosen]),
        group_ids=torch.zeros(len(chosen), dtype=torch.long),
        rewards=torch.tensor([s.reward for s in chosen], dtype=torch.float64),
        is_demo=torch.tensor([s.is_demo for s in chosen]),
        entropy=entropy[inside],
        prompt_lengths=torch.tensor([s.prompt_length for s in chosen]),
    )
