"""Samples to weighed samples: KL in the reward, and what the critic learns."""

import numpy as np
import pytest

from hpt_ray.algorithms import BatchShape, make_estimator
from hpt_ray.learner.scoring import needs_scores, weight_samples
from hpt_ray.types import Sample

BATCH = BatchShape(num_prompts=2, num_rollouts=2, max_response_tokens=8)


def sample(length: int, reward: float, *, group: int = 0, is_demo: bool = False, seed: int = 0) -> Sample:
    random = np.random.default_rng(seed)
    made = Sample(
        prompt_id="q",
        token_ids=np.zeros(3 + length, np.int32),
        prompt_length=3,
        old_logprobs=random.normal(-1, 0.3, length).astype(np.float32),
        is_demo=is_demo,
        reward=reward,
        group=group,
    )
    if is_demo:
        made.old_logprobs[:] = np.nan
    else:
        made.values = random.normal(size=length).astype(np.float32)
        made.ref_logprobs = (made.old_logprobs + random.normal(0, 0.2, length)).astype(np.float32)
    return made


def kl(one: Sample) -> np.ndarray:
    """The k3 estimate, token by token."""
    difference = one.old_logprobs.astype(np.float64) - one.ref_logprobs
    return np.exp(-difference) - 1 + difference


@pytest.mark.parametrize(
    ("choices", "scored"),
    [
        ({"name": "grpo"}, False),
        ({"name": "grpo", "kl_coef": 0.1}, False),
        ({"name": "grpo", "kl_coef": 0.1, "kl_in": "reward"}, True),
        ({"name": "grpo", "kl_in": "reward"}, False),
        ({"name": "ppo"}, True),
        ({"name": "opd"}, True),
        ({"name": "iw_sft"}, False),
        ({"name": "hpt", "rollout_advantage": "gae"}, True),
    ],
)
def test_samples_are_scored_first_only_where_it_is_asked_for(choices: dict, scored: bool) -> None:
    assert needs_scores(make_estimator(**choices)) is scored


def test_kl_is_taken_off_the_reward_of_a_whole_sample() -> None:
    estimator = make_estimator("dr_grpo", kl_coef=0.1, kl_in="reward", length_constant=8)
    samples = [sample(3, 1.0, seed=1), sample(5, 0.0, seed=2)]
    weighed = weight_samples(estimator, samples, BATCH)
    rewards = [1.0 - 0.1 * kl(samples[0]).sum(), 0.0 - 0.1 * kl(samples[1]).sum()]
    for item, reward in zip(weighed.samples, rewards, strict=True):
        assert item.advantages == pytest.approx(
            np.full((1, 3 + 2 * (item.sample is samples[1])), reward - np.mean(rewards))
        )
        assert item.kl_scale == 0
    total, count = weighed.sums["policy/kl_ref"]
    assert (total, count) == (pytest.approx(sum(kl(r).sum() for r in samples)), 8)
    assert [r.reward for r in samples] == [1.0, 0.0]  # as the reward function gave them


def test_a_teachers_advantage_is_how_much_likelier_it_finds_a_token() -> None:
    samples = [sample(3, 1.0, seed=1), sample(5, 0.0, seed=2)]
    weighed = weight_samples(make_estimator("opd"), samples, BATCH)
    gaps = [one.ref_logprobs.astype(np.float64) - one.old_logprobs for one in samples]
    for item, gap in zip(weighed.samples, gaps, strict=True):
        assert item.advantages[0] == pytest.approx(gap)
        assert item.scales[0] == pytest.approx(1 / 8)
    assert weighed.sums["policy/kl_ref"] == (pytest.approx(-np.concatenate(gaps).sum()), 8)


def test_ppo_takes_kl_off_token_by_token_and_returns_are_advantage_plus_value() -> None:
    estimator = make_estimator("ppo", kl_coef=0.1, kl_in="reward", gae_lambda=1.0, rollout_coef=4.0)
    one = sample(4, 1.0, seed=3)
    one.weight = 0.5
    weighed = weight_samples(estimator, [one], BATCH)
    tokens = -0.1 * kl(one)
    tokens[-1] += 1.0
    returns = np.cumsum(tokens[::-1])[::-1]  # λ = γ = 1: the reward to go
    assert weighed.samples[0].advantages[0] == pytest.approx(returns - one.values)
    assert one.returns == pytest.approx(returns, rel=1e-6)
    assert one.returns.dtype == np.float32
    assert weighed.samples[0].scales[0] == pytest.approx(4 * 0.5 / (2 * 2 * 4))
    assert one.value_scale == pytest.approx(0.5 / (2 * 2 * 4))  # without ρ
    total, count = weighed.sums["critic/error_squared"]
    assert total / count == pytest.approx(np.mean((returns - one.values) ** 2))


def test_demonstrations_beside_a_critic_need_no_values() -> None:
    estimator = make_estimator("hpt", rollout_advantage="gae")
    samples = [sample(3, 1.0, seed=4), sample(2, 1.0, group=1, is_demo=True)]
    weighed = weight_samples(estimator, samples, BATCH)
    assert [item.sample for item in weighed.samples] == samples
    assert np.isfinite(np.concatenate([item.advantages for item in weighed.samples], axis=1)).all()
    assert samples[1].returns is None
    assert weighed.sums["critic/error"][1] == 3


def test_samples_without_weight_are_counted_and_left_out() -> None:
    estimator = make_estimator("dr_grpo")
    weighed = weight_samples(estimator, [sample(3, 1.0), sample(3, 1.0), sample(2, 1.0, is_demo=True)], BATCH)
    assert (weighed.samples, weighed.num_skipped) == ([], 3)
    assert weight_samples(estimator, [], BATCH).samples == []
