"""Rows to weighed rows: the estimator's half that needs rewards, with KL in the reward and PPO's returns.

In: rows of whole questions, scored where the algorithm asks for it. Out: the rows that count, each with
advantages and scales, and sums for the metrics. Pure but for `returns` and `value_scale`, which it fills in
on the rows the critic learns from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpt_ray.algorithms import BatchShape, Estimator, kl_token_rewards
from hpt_ray.algorithms.advantages import ADVANTAGES
from hpt_ray.learner.packing import WeighedRow
from hpt_ray.learner.sums import Sums
from hpt_ray.types import Row


@dataclass(frozen=True)
class Weighed:
    """The rows that count, how many do not, and what was seen."""

    rows: list[WeighedRow]
    num_skipped: int
    sums: Sums


def needs_scores(estimator: Estimator) -> bool:
    """Whether rows must be scored before they can be weighed."""
    return estimator.needs_values or kl_in_reward(estimator)


def kl_in_reward(estimator: Estimator) -> bool:
    return estimator.kl_coef != 0 and estimator.kl_in == "reward"


def weigh_rows(estimator: Estimator, rows: list[Row], batch: BatchShape) -> Weighed:
    """Weigh the rows of whole questions (of the whole update, where the estimator needs all rows)."""
    if not rows:
        return Weighed([], 0, {})
    lengths = np.array([row.response_length for row in rows])
    rewards = np.array([row.reward for row in rows], np.float64)
    sums: Sums = {}
    values = token_rewards = None
    if kl_in_reward(estimator):
        token_rewards = np.concatenate([_kl_rewards(estimator, row) for row in rows])
        num_tokens = sum(row.response_length for row in rows if not row.is_demo)
        sums["policy/kl_ref"] = (-float(token_rewards.sum()) / estimator.kl_coef, num_tokens)
    if estimator.needs_values:
        values = np.concatenate([_or_zeros(row.values, row) for row in rows])
    elif token_rewards is not None:
        rewards = rewards + np.add.reduceat(token_rewards, np.cumsum(lengths) - lengths)
    weights = estimator.weigh(
        lengths,
        np.array([row.group for row in rows]),
        rewards,
        np.array([row.is_demo for row in rows]),
        np.array([row.weight for row in rows], np.float64),
        batch,
        prompt_lengths=np.array([row.prompt_length for row in rows]),
        values=values,
        token_rewards=token_rewards if estimator.needs_values else None,
    )
    advantages = weights.token_advantages(lengths)
    ends = np.cumsum(lengths)
    weighed = [
        WeighedRow(
            row,
            advantages[:, end - length : end],
            np.asarray(weights.scales)[:, i],
            float(weights.entropy_scales[i]),
            float(weights.kl_scales[i]),
        )
        for i, (row, length, end) in enumerate(zip(rows, lengths, ends, strict=True))
    ]
    if estimator.needs_values:
        sums |= _set_returns(estimator, weighed)
    kept = [row for row, counts in zip(weighed, weights.counts(lengths), strict=True) if counts]
    return Weighed(kept, len(rows) - len(kept), sums)


def _kl_rewards(estimator: Estimator, row: Row) -> np.ndarray:
    """[L] −coef·KL(π_old‖π_ref) of each token; 0 on a demonstration, which the policy did not sample."""
    if row.is_demo:
        return np.zeros(row.response_length)
    assert row.logp_ref is not None, f"a rollout of {row.question_id} was not scored by the reference"
    return kl_token_rewards(row.logp_old, row.logp_ref, estimator.kl_coef, estimator.kl_estimator)


def _or_zeros(values: np.ndarray | None, row: Row) -> np.ndarray:
    assert row.is_demo or values is not None, f"a rollout of {row.question_id} was not scored by the critic"
    return np.zeros(row.response_length) if values is None else values


def _set_returns(estimator: Estimator, weighed: list[WeighedRow]) -> Sums:
    """Fill in G = Â + V and weight / Z on the rollouts; the moments of G and of G − V.

    Z is that of the policy term with the critic's advantage. That term's coefficient is left out: the
    critic has an optimizer of its own.
    """
    k = next(i for i, t in enumerate(estimator.terms) if "values" in ADVANTAGES[t.advantage].needs)
    coef = estimator.terms[k].coef or 1.0
    moments = np.zeros(4)
    num_tokens = 0
    for item in weighed:
        row = item.row
        if row.is_demo:
            continue
        assert row.values is not None
        error = item.advantages[k]
        returns = error + row.values
        row.returns, row.value_scale = returns.astype(np.float32), float(item.scales[k] / coef)
        moments += [returns.sum(), (returns**2).sum(), error.sum(), (error**2).sum()]
        num_tokens += len(error)
    names = ("return", "return_squared", "error", "error_squared")
    return {f"critic/{name}": (float(m), num_tokens) for name, m in zip(names, moments, strict=True)}
