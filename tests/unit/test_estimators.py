"""The estimator's parts value for value (reference values worked by hand) and its two halves."""

import math
import pickle

import numpy as np
import pytest
import torch

from hpt_ray.algorithms import (
    ALGORITHMS,
    BatchShape,
    SampleWeights,
    TokenBatch,
    clipped_value_loss,
    describe,
    effective_sample_size,
    kl_token_rewards,
    make_estimator,
)
from hpt_ray.algorithms.batch import token_view
from hpt_ray.algorithms.loss_aggregation import virtual_micro_batches
from hpt_ray.algorithms.token_parts import SHAPINGS


def rollouts(rewards, logprobs=None, old_logprobs=None, lengths=None, demo=()):
    """One group of samples, of one token each unless `lengths` says more."""
    lengths = lengths or [1] * len(rewards)
    now = torch.full((sum(lengths),), -1.0) if logprobs is None else torch.tensor(logprobs)
    return TokenBatch(
        logprobs=now.double().requires_grad_(),
        old_logprobs=(now if old_logprobs is None else torch.tensor(old_logprobs)).double(),
        sample_lengths=torch.tensor(lengths),
        group_ids=torch.zeros(len(rewards), dtype=torch.long),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        is_demo=torch.tensor([i in demo for i in range(len(rewards))]),
    )


def coefficients(name, samples, **overrides):
    return make_estimator(name, **overrides).coefficients(samples).tolist()


# ---- advantages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("grpo", 0.8660, -0.8660), ("dr_grpo", 0.5, -0.5), ("rloo", 0.6667, -0.6667), ("reinforce", 1, -1)],
)
def test_advantages_of_a_half_solved_group(name, right, wrong):
    # At ρ = 1 the coefficient is the advantage.
    expected = [right, wrong, wrong, right]
    assert coefficients(name, rollouts([1, 0, 0, 1])) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("grpo", 2.4749, -0.35355), ("dr_grpo", 0.875, -0.125), ("rloo", 1.0, -0.142857)],
)
def test_advantages_of_one_solved_in_eight(name, right, wrong):
    expected = [right] + [wrong] * 7
    assert coefficients(name, rollouts([1] + [0] * 7)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "dapo", "cispo", "gspo"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_equal_rewards_give_exactly_zero(name, reward):
    assert coefficients(name, rollouts([reward] * 7)) == [0.0] * 7


def test_union_with_a_solved_demonstration():
    samples = rollouts([1] + [0] * 7, demo={0}, logprobs=[math.log(0.1)] + [-1.0] * 7)
    demo, *others = coefficients("luffy", samples)
    assert demo == pytest.approx(0.875 * 0.25)
    assert others == pytest.approx([-0.125] * 7)


def test_batch_advantage_is_over_all_rollouts():
    samples = rollouts([1, 0, 0, 0])
    samples = TokenBatch(**{**fields_of(samples), "group_ids": torch.tensor([0, 0, 1, 1])})
    estimator = make_estimator("grpo", rollout_advantage="batch_std")
    assert estimator.needs_all_samples
    assert estimator.coefficients(samples).tolist() == pytest.approx([1.5] + [-0.5] * 3, abs=1e-5)


def fields_of(samples):
    return {name: getattr(samples, name) for name in TokenBatch.__dataclass_fields__}


# ---- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advantage", "ratio", "mask"),
    [
        ("dr_grpo", +1, 1.3, 0),
        ("dr_grpo", +1, 0.7, 1),
        ("dr_grpo", -1, 0.7, 0),
        ("dr_grpo", -1, 1.3, 1),
        ("dapo", +1, 1.25, 1),
        ("dapo", +1, 1.29, 0),
    ],
)
def test_clip_mask(name, advantage, ratio, mask):
    estimator = make_estimator(name, rollout_loss_aggregation="seq-mean-token-sum-norm")
    samples = rollouts([0.0], logprobs=[-1.0], old_logprobs=[-1.0 - math.log(ratio)])
    weights = SampleWeights(np.full((1, 1), float(advantage)), np.ones((1, 1)), np.zeros(1), np.zeros(1))
    assert estimator.coefficients(samples, weights).tolist() == pytest.approx([mask * advantage * ratio])


def test_at_ratio_one_the_ratio_methods_agree():
    samples = rollouts([1, 0, 0, 1], lengths=[2, 1, 3, 1])
    first = coefficients("grpo", samples)
    for name in ("dapo", "cispo", "gspo"):
        assert coefficients(name, samples) == pytest.approx(first, abs=1e-12)
    assert coefficients("ppo", samples, rollout_advantage="group_std") == pytest.approx(first, abs=1e-12)
    assert coefficients("reinforce", samples, rollout_advantage="group_std") == pytest.approx(
        first, abs=1e-12
    )


# ---- demonstrations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "sft", "srft", "luffy"),
    [(0.1, 1, 0.1, 0.25), (0.9, 1, 0.9, 0.09), (0.001, 1, 0.001, 0.0098)],
)
def test_coefficients_on_demonstrations(p, sft, srft, luffy):
    samples = rollouts([1], logprobs=[math.log(p)], old_logprobs=[math.nan], demo={0})
    assert coefficients("sft", samples) == [sft]
    off_policy = {"demo_advantage": "reward", "demo_denominator": "one"}
    assert coefficients("sft", samples, **off_policy) == pytest.approx([srft])
    assert coefficients("sft", samples, **off_policy, demo_shaping="luffy") == pytest.approx(
        [luffy], rel=2e-3
    )


@pytest.mark.parametrize(("p", "slope"), [(0.1, 2.5), (0.9, 0.1), (0.0, 10.0)])
def test_luffy_shaping(p, slope):
    samples = rollouts([1], logprobs=[math.log(p) if p else -math.inf], demo={0})
    view = token_view(samples, make_estimator("luffy").settings)
    assert SHAPINGS["luffy"].function(view).exp().item() == pytest.approx(slope, rel=1e-6)


def test_nan_of_demonstrations_reaches_nothing():
    samples = rollouts([1, 0, 1], old_logprobs=[-1.0, -1.1, math.nan], demo={2})
    samples = TokenBatch(**{**fields_of(samples), "ref_logprobs": torch.tensor([-1.2, -1.0, math.nan])})
    loss, stats = make_estimator("luffy", kl_coef=0.1).loss(samples)
    (gradient,) = torch.autograd.grad(loss, samples.logprobs)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert all(total.isfinite() for total, _ in stats.values())


# ---- loss aggregation ----------------------------------------------------------------------------

BATCH = BatchShape(num_prompts=4, num_rollouts=8, max_response_tokens=100)


def scales(name, lengths, demo, weights=None, groups=None, rewards=None, batch=BATCH, **overrides):
    count = len(lengths)
    result = make_estimator(name, **overrides).weigh(
        np.array(lengths),
        np.zeros(count) if groups is None else np.array(groups),
        np.ones(count) if rewards is None else np.array(rewards, float),
        np.array(demo),
        np.ones(count) if weights is None else np.array(weights, float),
        batch,
    )
    return result.scales


def test_nominal_sizes_not_those_that_came_back():
    result = scales("hpt", [10, 20, 5], [False, False, True], rollout_coef=4, length_constant=24)
    assert result[0] == pytest.approx([4 / (4 * 8 * 24)] * 2 + [0])
    assert result[1] == pytest.approx([0, 0, 1 / (4 * 5)])


def test_constant_defaults_to_the_response_limit():
    assert scales("dr_grpo", [10], [False])[0, 0] == pytest.approx(1 / (4 * 8 * 100))


def test_token_mean_counts_samples_with_weight_only():
    result = scales("cispo", [10, 20, 30], [False] * 3, weights=[1, 0, 1])
    assert result[0] == pytest.approx([1 / 40, 0, 1 / 40])


def test_dapo_counts_mixed_groups_only():
    result = scales("dapo", [10, 20, 30, 40], [False] * 4, groups=[7, 7, 9, 9], rewards=[1, 0, 1, 1])
    assert result[0] == pytest.approx([1 / 30, 1 / 30, 0, 0])


@pytest.mark.parametrize(("rewards", "inside"), [([1, 0, 1, 1], [1, 1, 0, 0]), ([0, 0, 1, 1], [0, 0, 0, 0])])
def test_what_dapo_does_not_count_has_no_entropy_bonus_and_no_kl_either(rewards, inside):
    weights = make_estimator("dapo", entropy_coef=0.3, kl_coef=0.6).weigh(
        np.array([10, 20, 30, 40]), np.array([7, 7, 9, 9]), np.array(rewards), np.zeros(4), np.ones(4), BATCH
    )
    assert weights.entropy_scales == pytest.approx(np.array(inside) * 0.01)
    assert weights.kl_scales == pytest.approx(np.array(inside) * 0.02)


def test_only_what_needs_all_samples_waits():
    waiting = {name for name in ALGORITHMS if make_estimator(name).needs_all_samples}
    assert waiting == {
        "dapo", "cispo", "srft_official", "iw_sft", "chord_mu", "chord_phi", "opd", "uft",
    }  # fmt: skip
    assert make_estimator("hpt", mode="official").needs_all_samples
    assert not make_estimator("hpt", mode="paper").needs_all_samples


def test_official_layout_fills_ranks_evenly_and_keeps_the_budget():
    lengths = np.array([9000, 8000, 100, 200] * 16)
    micro_batch = virtual_micro_batches(lengths)
    tokens = np.bincount(micro_batch, lengths)
    per_rank = len(tokens) // 8
    samples_of_rank = np.bincount(micro_batch // per_rank, minlength=8)
    assert samples_of_rank.tolist() == [8] * 8
    # 34,600 tokens a rank need two micro-batches of at most 32,768.
    assert per_rank == 2
    assert tokens.max() <= 32_768


def test_official_sft_weight_does_not_grow_with_demonstrations():
    """Each virtual micro-batch with a demonstration weighs λ, however many it holds."""
    few = scales("sft", [10] * 8, [True] * 8, mode="official")
    many = scales("sft", [10] * 80, [True] * 80, mode="official")
    assert (few[0] * 10).sum() == pytest.approx(1.0)
    assert (many[0] * 10).sum() == pytest.approx(1.0)


def test_luffy_gives_one_place_of_the_group_to_the_demonstration():
    assert make_estimator("luffy").num_rollouts(8) == 7
    assert make_estimator("srft", mode="official").num_rollouts(8) == 7
    assert make_estimator("srft").num_rollouts(8) == 8
    seven = BatchShape(num_prompts=4, num_rollouts=7, max_response_tokens=100)
    assert scales("luffy", [10, 10], [False, True], batch=seven).max(0) == pytest.approx(
        [1 / (4 * 8 * 100)] * 2
    )


def test_samples_that_count():
    estimator = make_estimator("hpt")
    lengths = np.array([2, 3, 1, 1])
    groups, rewards = np.array([0, 0, 1, 2]), np.array([1, 0, 1, 1.0])
    is_demo, gate = np.array([False, False, False, True]), np.array([1, 1, 1, 0.0])
    weights = estimator.weigh(lengths, groups, rewards, is_demo, gate, BATCH)
    assert weights.counts(lengths).tolist() == [True, True, False, False]
    per_token = weights.token_advantages(lengths)
    assert per_token[0].tolist() == [0.5, 0.5, -0.5, -0.5, -0.5, 0, 0]
    as_micro_batch = SampleWeights(per_token, weights.scales, weights.entropy_scales, weights.kl_scales)
    assert as_micro_batch.counts(lengths).tolist() == [True, True, False, False]


# ---- additive terms ------------------------------------------------------------------------------


def test_entropy_bonus_is_divided_like_its_stream():
    samples = rollouts([1, 0], lengths=[2, 1])
    entropy = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    samples = TokenBatch(**{**fields_of(samples), "entropy": entropy})
    loss, _ = make_estimator("grpo", entropy_coef=0.01).loss(samples)
    (gradient,) = torch.autograd.grad(loss, entropy)
    assert gradient.tolist() == pytest.approx([-0.01 / 4, -0.01 / 4, -0.01 / 2])


@pytest.mark.parametrize(
    ("kind", "slope"),
    [("k1", lambda d: 1.0), ("k2", lambda d: d), ("k3", lambda d: 1 - math.exp(-d))],
)
def test_gradient_of_kl_estimators(kind, slope):
    samples = rollouts([1, 1], logprobs=[-1.0, -2.0])
    samples = TokenBatch(
        **{**fields_of(samples), "ref_logprobs": torch.tensor([-1.3, -1.5], dtype=torch.float64)}
    )
    loss, stats = make_estimator("grpo", kl_coef=0.2, kl_estimator=kind).loss(samples)
    (gradient,) = torch.autograd.grad(loss, samples.logprobs)
    assert gradient.tolist() == pytest.approx([0.2 / 2 * slope(0.3), 0.2 / 2 * slope(-0.5)])
    assert stats["policy/kl_ref"][1] == 2


def test_kl_in_the_reward():
    tokens = kl_token_rewards(np.array([-1.0, -2.0]), np.array([-1.3, -1.5]), 0.1, "k1")
    assert tokens.tolist() == pytest.approx([-0.03, 0.05])
    estimator = make_estimator("ppo", kl_coef=0.1, kl_in="reward", gae_lambda=1.0)
    one_sample = np.array([2]), np.array([0]), np.array([1.0]), np.array([False]), np.ones(1)
    weights = estimator.weigh(*one_sample, BATCH, values=np.zeros(2), token_rewards=tokens)
    assert weights.advantages[0].tolist() == pytest.approx([1.02, 1.05])
    assert weights.kl_scales.tolist() == [0]


def test_clipped_value_loss():
    values = torch.tensor([1.0, 1.0, 0.1])
    loss = clipped_value_loss(values, torch.tensor([0.5, 0.5, 0.0]), torch.tensor([2.0, 0.0, 1.0]), clip=0.2)
    assert loss.tolist() == pytest.approx([0.5 * 1.3**2, 0.5, 0.5 * 0.9**2])


# ---- sampler and learner -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        ("none", [3.0, 1.0, 0.25]),
        ("token_truncate", [2.0, 1.0, 0.25]),
        ("token_mask", [0.0, 1.0, 0.0]),
        ("sequence_truncate", [2.0, 2.0, 0.25]),
        ("sequence_mask", [0.0, 0.0, 0.0]),
    ],
)
def test_corrections(correction, weights):
    """Samples of weights (3, 1) and (¼): the sequence weights are 3 and ¼; bounds ½ and 2."""
    old = [-1 - math.log(3), -1.0, -1 - math.log(0.25)]
    samples = rollouts([1, 0], lengths=[2, 1], logprobs=[-1.0] * 3, old_logprobs=old)
    expected = [0.5 * weights[0], 0.5 * weights[1], -0.5 * weights[2]]
    found = coefficients("hpt", samples, correction=correction)
    assert found == pytest.approx(expected)
    if correction != "none":
        assert coefficients("rloo", samples, correction=correction) == pytest.approx(
            [2 * c for c in expected]
        )


def test_effective_sample_size():
    even = rollouts([1, 0], logprobs=[-1.0, -2.0])
    assert effective_sample_size(make_estimator("grpo").loss(even)[1]) == pytest.approx(1.0)
    odd = rollouts([1, 0], logprobs=[-1.0, -1.0], old_logprobs=[-1.0 - math.log(3), -1.0])
    assert effective_sample_size(make_estimator("grpo").loss(odd)[1]) == pytest.approx(4**2 / (2 * 10))


# ---- objects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_estimators_are_picklable_and_printable(name):
    estimator = make_estimator(name)
    assert pickle.loads(pickle.dumps(estimator)) == estimator
    algorithm = ALGORITHMS[name]
    assert algorithm.formula in repr(algorithm)
    assert algorithm.source in describe(estimator)
    for term in estimator.terms:
        assert term.loss_aggregation in describe(estimator)
    assert "arXiv" in algorithm.source or "github.com" in algorithm.source


def test_losses_of_different_streams_need_different_data():
    assert not make_estimator("sft").needs_rollouts
    assert not make_estimator("grpo").needs_demonstrations
    assert make_estimator("hpt").needs_rollouts
    assert make_estimator("hpt").needs_demonstrations
    assert make_estimator("ppo").needs_values
    assert make_estimator("grpo", kl_coef=0.1).needs_reference


def test_a_sample_without_tokens_is_named():
    with pytest.raises(ValueError, match="sample 1 has no response token"):
        scales("grpo", [3, 0], [False, False])


def test_missing_values_and_entropy_are_named():
    with pytest.raises(ValueError, match="critic"):
        make_estimator("ppo").loss(rollouts([1, 0]))
    with pytest.raises(ValueError, match="entropy"):
        make_estimator("srft").loss(rollouts([1, 0]))
