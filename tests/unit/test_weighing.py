"""Rows to weighed rows: KL in the reward, and what the critic learns."""

import numpy as np
import pytest

from hpt_ray.algorithms import BatchShape, make_estimator
from hpt_ray.learner.weighing import needs_scores, weigh_rows
from hpt_ray.types import Row

BATCH = BatchShape(num_questions=2, num_rollouts=2, max_response_tokens=8)


def row(length: int, reward: float, *, group: int = 0, is_demo: bool = False, seed: int = 0) -> Row:
    random = np.random.default_rng(seed)
    made = Row(
        question_id="q",
        token_ids=np.zeros(3 + length, np.int32),
        prompt_length=3,
        logp_old=random.normal(-1, 0.3, length).astype(np.float32),
        is_demo=is_demo,
        reward=reward,
        group=group,
    )
    if is_demo:
        made.logp_old[:] = np.nan
    else:
        made.values = random.normal(size=length).astype(np.float32)
        made.logp_ref = (made.logp_old + random.normal(0, 0.2, length)).astype(np.float32)
    return made


def kl(one: Row) -> np.ndarray:
    """The k3 estimate, token by token."""
    difference = one.logp_old.astype(np.float64) - one.logp_ref
    return np.exp(-difference) - 1 + difference


@pytest.mark.parametrize(
    ("choices", "scored"),
    [
        ({"name": "grpo"}, False),
        ({"name": "grpo", "kl_coef": 0.1}, False),
        ({"name": "grpo", "kl_coef": 0.1, "kl_in": "reward"}, True),
        ({"name": "grpo", "kl_in": "reward"}, False),
        ({"name": "ppo"}, True),
        ({"name": "hpt", "rollout_advantage": "gae"}, True),
    ],
)
def test_rows_are_scored_first_only_where_it_is_asked_for(choices: dict, scored: bool) -> None:
    assert needs_scores(make_estimator(**choices)) is scored


def test_kl_is_taken_off_the_reward_of_a_whole_row() -> None:
    estimator = make_estimator("dr_grpo", kl_coef=0.1, kl_in="reward", length_constant=8)
    rows = [row(3, 1.0, seed=1), row(5, 0.0, seed=2)]
    weighed = weigh_rows(estimator, rows, BATCH)
    rewards = [1.0 - 0.1 * kl(rows[0]).sum(), 0.0 - 0.1 * kl(rows[1]).sum()]
    for item, reward in zip(weighed.rows, rewards, strict=True):
        assert item.advantages == pytest.approx(
            np.full((1, 3 + 2 * (item.row is rows[1])), reward - np.mean(rewards))
        )
        assert item.kl_scale == 0
    total, count = weighed.sums["policy/kl_ref"]
    assert (total, count) == (pytest.approx(sum(kl(r).sum() for r in rows)), 8)
    assert [r.reward for r in rows] == [1.0, 0.0]  # as graded


def test_ppo_takes_kl_off_token_by_token_and_returns_are_advantage_plus_value() -> None:
    estimator = make_estimator("ppo", kl_coef=0.1, kl_in="reward", gae_lambda=1.0, rollout_coef=4.0)
    one = row(4, 1.0, seed=3)
    one.weight = 0.5
    weighed = weigh_rows(estimator, [one], BATCH)
    tokens = -0.1 * kl(one)
    tokens[-1] += 1.0
    returns = np.cumsum(tokens[::-1])[::-1]  # λ = γ = 1: the reward to go
    assert weighed.rows[0].advantages[0] == pytest.approx(returns - one.values)
    assert one.returns == pytest.approx(returns, rel=1e-6)
    assert one.returns.dtype == np.float32
    assert weighed.rows[0].scales[0] == pytest.approx(4 * 0.5 / (2 * 2 * 4))
    assert one.value_scale == pytest.approx(0.5 / (2 * 2 * 4))  # without ρ
    total, count = weighed.sums["critic/error_squared"]
    assert total / count == pytest.approx(np.mean((returns - one.values) ** 2))


def test_demonstrations_beside_a_critic_need_no_values() -> None:
    estimator = make_estimator("hpt", rollout_advantage="gae")
    rows = [row(3, 1.0, seed=4), row(2, 1.0, group=1, is_demo=True)]
    weighed = weigh_rows(estimator, rows, BATCH)
    assert [item.row for item in weighed.rows] == rows
    assert np.isfinite(np.concatenate([item.advantages for item in weighed.rows], axis=1)).all()
    assert rows[1].returns is None
    assert weighed.sums["critic/error"][1] == 3


def test_rows_without_weight_are_counted_and_left_out() -> None:
    estimator = make_estimator("dr_grpo")
    weighed = weigh_rows(estimator, [row(3, 1.0), row(3, 1.0), row(2, 1.0, is_demo=True)], BATCH)
    assert (weighed.rows, weighed.num_skipped) == ([], 3)
    assert weigh_rows(estimator, [], BATCH).rows == []
