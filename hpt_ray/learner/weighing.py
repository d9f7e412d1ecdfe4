"""Samples to weighed samples: the estimator's half that needs rewards, with KL in the reward and PPO's returns.

In: samples of whole prompts, scored where the algorithm asks for it. Out: the samples that count, each with
advantages and scales, and sums for the metrics. Pure but for `returns` and `value_scale`, which it fills in
on the samples the critic learns from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpt_ray.algorithms import BatchShape, Estimator, kl_token_rewards
from hpt_ray.algorithms.advantages import ADVANTAGES
from hpt_ray.learner.packing import WeightedSample
from hpt_ray.learner.sums import Sums
from hpt_ray.types import Sample


@dataclass(frozen=True)
class Weighed:
    """The samples that count, how many do not, and what was seen."""

    samples: list[WeightedSample]
    num_skipped: int
    sums: Sums


def needs_scores(estimator: Estimator) -> bool:
    """Whether samples must be scored before they can be weighed."""
    return estimator.needs_values or kl_in_reward(estimator)


def kl_in_reward(estimator: Estimator) -> bool:
    return estimator.kl_coef != 0 and estimator.kl_in == "reward"


def weight_samples(estimator: Estimator, samples: list[Sample], batch: BatchShape) -> Weighed:
    """Weigh the samples of whole prompts (of the whole update, where the estimator needs all samples)."""
    if not samples:
        return Weighed([], 0, {})
    lengths = np.array([sample.response_length for sample in samples])
    rewards = np.array([sample.reward for sample in samples], np.float64)
    sums: Sums = {}
    values = token_rewards = None
    if kl_in_reward(estimator):
        token_rewards = np.concatenate([_kl_rewards(estimator, sample) for sample in samples])
        num_tokens = sum(sample.response_length for sample in samples if not sample.is_demo)
        sums["policy/kl_ref"] = (-float(token_rewards.sum()) / estimator.kl_coef, num_tokens)
    if estimator.needs_values:
        values = np.concatenate([_or_zeros(sample.values, sample) for sample in samples])
    elif token_rewards is not None:
        rewards = rewards + np.add.reduceat(token_rewards, np.cumsum(lengths) - lengths)
    weights = estimator.weigh(
        lengths,
        np.array([sample.group for sample in samples]),
        rewards,
        np.array([sample.is_demo for sample in samples]),
        np.array([sample.weight for sample in samples], np.float64),
        batch,
        prompt_lengths=np.array([sample.prompt_length for sample in samples]),
        values=values,
        token_rewards=token_rewards if estimator.needs_values else None,
    )
    advantages = weights.token_advantages(lengths)
    ends = np.cumsum(lengths)
    weighed = [
        WeightedSample(
            sample,
            advantages[:, end - length : end],
            np.asarray(weights.scales)[:, i],
            float(weights.entropy_scales[i]),
            float(weights.kl_scales[i]),
        )
        for i, (sample, length, end) in enumerate(zip(samples, lengths, ends, strict=True))
    ]
    if estimator.needs_values:
        sums |= _set_returns(estimator, weighed)
    kept = [sample for sample, counts in zip(weighed, weights.counts(lengths), strict=True) if counts]
    return Weighed(kept, len(samples) - len(kept), sums)


def _kl_rewards(estimator: Estimator, sample: Sample) -> np.ndarray:
    """[L] −coef·KL(π_old‖π_ref) of each token; 0 on a demonstration, which the policy did not sample."""
    if sample.is_demo:
        return np.zeros(sample.response_length)
    assert sample.ref_logprobs is not None, f"a rollout of {sample.prompt_id} was not scored by the reference"
    return kl_token_rewards(
        sample.old_logprobs, sample.ref_logprobs, estimator.kl_coef, estimator.kl_estimator
    )


def _or_zeros(values: np.ndarray | None, sample: Sample) -> np.ndarray:
    assert sample.is_demo or values is not None, (
        f"a rollout of {sample.prompt_id} was not scored by the critic"
    )
    return np.zeros(sample.response_length) if values is None else values


def _set_returns(estimator: Estimator, weighed: list[WeightedSample]) -> Sums:
    """Fill in G = Â + V and weight / Z on the rollouts; the moments of G and of G − V.

    Z is that of the policy term with the critic's advantage. That term's coefficient is left out: the
    critic has an optimizer of its own.
    """
    k = next(i for i, t in enumerate(estimator.terms) if "values" in ADVANTAGES[t.advantage].needs)
    coef = estimator.terms[k].coef or 1.0
    moments = np.zeros(4)
    num_tokens = 0
    for item in weighed:
        sample = item.sample
        if sample.is_demo:
            continue
        assert sample.values is not None
        error = item.advantages[k]
        returns = error + sample.values
        sample.returns, sample.value_scale = returns.astype(np.float32), float(item.scales[k] / coef)
        moments += [returns.sum(), (returns**2).sum(), error.sum(), (error**2).sum()]
        num_tokens += len(error)
    names = ("return", "return_squared", "error", "error_squared")
    return {f"critic/{name}": (float(m), num_tokens) for name, m in zip(names, moments, strict=True)}
