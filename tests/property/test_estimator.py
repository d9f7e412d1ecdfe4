"""Properties of every algorithm on arbitrary samples: layout does not matter, numbers stay finite.

The layout-dependent `official` modes are left out where layout is the point.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt_ray.algorithms import ALGORITHMS, BatchShape, SampleWeights, TokenBatch, make_estimator

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
BATCH = BatchShape(num_prompts=4, num_rollouts=3, max_response_tokens=6)
VARIANTS = [
    ("sft", "default", None), ("reinforce", "default", None), ("rloo", "default", None),
    ("ppo", "default", None), ("grpo", "default", None), ("dr_grpo", "default", None),
    ("dapo", "default", None), ("cispo", "default", None), ("gspo", "default", None),
    ("luffy", "default", None), ("luffy", "paper", None), ("srft", "default", None),
    ("hpt", "default", "sft"), ("hpt", "paper", "sft"), ("hpt", "default", "mix"), ("superrl", "default", None),
    ("dft", "default", None), ("iw_sft", "default", None), ("chord_mu", "default", None),
    ("chord_phi", "default", None), ("rl_plus", "default", None), ("opd", "default", None),
    ("prefix_rft", "default", None), ("uft", "default", None), ("bread", "default", None),
]  # fmt: skip
OFFICIAL = [("sft", "official", None), ("grpo", "official", None), ("luffy", "official", None),
            ("srft", "official", None), ("hpt", "official", "mix")]  # fmt: skip
every_variant = pytest.mark.parametrize(("name", "mode", "branch"), VARIANTS, ids=str)
every_variant_and_official = pytest.mark.parametrize(("name", "mode", "branch"), VARIANTS + OFFICIAL, ids=str)

logprob = st.floats(min_value=-60.0, max_value=-1e-8)


@dataclass(frozen=True)
class Line:
    """One sample by itself."""

    group: int
    reward: float
    is_demo: bool
    weight: float
    now: tuple[float, ...]
    old: tuple[float, ...]
    entropy: tuple[float, ...]
    values: tuple[float, ...]
    frozen: tuple[float, ...]


@st.composite
def lines(draw, log_probs=logprob, rewards=None):
    rewards = st.sampled_from([0.0, 1.0, 0.3]) if rewards is None else rewards
    length = draw(st.integers(1, 5))

    def tokens(strategy):
        return tuple(draw(st.lists(strategy, min_size=length, max_size=length)))

    is_demo = draw(st.booleans())
    return Line(
        group=draw(st.integers(0, 3)),
        reward=draw(rewards),
        is_demo=is_demo,
        weight=draw(st.sampled_from([1.0, 1.0, 0.5, 0.0])),
        now=tokens(log_probs),
        old=(float("nan"),) * length if is_demo else tokens(log_probs),
        entropy=tokens(st.floats(0, 11)),
        values=tokens(st.floats(-1, 2)),
        frozen=tokens(log_probs),
    )


batches = st.lists(lines(), max_size=8)
# Ratios near 1, so that sums in another order may be compared to 1e-10.
calm_batches = st.lists(lines(log_probs=st.floats(-1.5, -0.05)), min_size=1, max_size=8)


def build(batch: list[Line], dtype=torch.float64) -> TokenBatch:
    def flat(name):
        return torch.tensor([x for line in batch for x in getattr(line, name)], dtype=dtype)

    return TokenBatch(
        logprobs=flat("now").requires_grad_(),
        old_logprobs=flat("old"),
        sample_lengths=torch.tensor([len(line.now) for line in batch], dtype=torch.long),
        group_ids=torch.tensor([line.group for line in batch], dtype=torch.long),
        rewards=torch.tensor([line.reward for line in batch], dtype=torch.float64),
        is_demo=torch.tensor([line.is_demo for line in batch], dtype=torch.bool),
        entropy=flat("entropy"),
        values=flat("values"),
        ref_logprobs=flat("frozen"),
    )


def make(name, mode, branch, **overrides):
    return make_estimator(name, mode=mode, offline_branch=branch, **overrides)


def weigh(estimator, batch: list[Line]) -> SampleWeights:
    samples = build(batch)
    gate = np.array([line.weight for line in batch])
    return estimator.weigh(
        samples.sample_lengths,
        samples.group_ids,
        samples.rewards,
        samples.is_demo,
        gate,
        BATCH,
        values=samples.values,
        teacher_gaps=(samples.ref_logprobs - samples.old_logprobs).nan_to_num(),
    )


def loss_and_gradients(estimator, batch, weights=None, dtype=torch.float64):
    """The loss, ∂L/∂log π sample by sample, and the statistics."""
    samples = build(batch, dtype)
    loss, stats = estimator.loss(samples, weigh(estimator, batch) if weights is None else weights)
    (gradient,) = torch.autograd.grad(loss, samples.logprobs)
    return loss.item(), gradient.split(samples.sample_lengths.tolist()), stats


def pick(weights: SampleWeights, batch: list[Line], chosen: list[int]) -> SampleWeights:
    """The weights of some samples, in the form a micro-batch carries."""
    lengths = np.array([len(line.now) for line in batch])
    columns = np.split(weights.token_advantages(lengths), np.cumsum(lengths)[:-1], axis=1)
    return SampleWeights(
        np.concatenate([columns[i] for i in chosen], axis=1),
        weights.scales[:, chosen],
        weights.entropy_scales[chosen],
        weights.kl_scales[chosen],
    )


def assert_same_samples(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@every_variant
@PROPERTY
@given(batch=calm_batches, data=st.data())
def test_micro_batches_and_ranks_do_not_matter(name, mode, branch, batch, data):
    """Any split of the samples, in any order: losses, gradients and statistics add up to the same."""
    estimator = make(name, mode, branch, entropy_coef=0.01)
    weights = weigh(estimator, batch)
    whole, gradients, stats = loss_and_gradients(estimator, batch, weights)
    place = data.draw(st.lists(st.integers(0, 2), min_size=len(batch), max_size=len(batch)))
    parts = [[i for i in range(len(batch)) if place[i] == k] for k in range(3)]
    total, pieces, sums = 0.0, {}, {}
    for chosen in filter(None, parts):
        part = [batch[i] for i in chosen]
        loss, gradient, part_stats = loss_and_gradients(estimator, part, pick(weights, batch, chosen))
        total += loss
        pieces |= dict(zip(chosen, gradient, strict=True))
        for key, pair in part_stats.items():
            old = sums.get(key, (0.0, 0.0))
            sums[key] = tuple(float(x) + y for x, y in zip(pair, old, strict=True))
    assert total == pytest.approx(whole, rel=1e-10, abs=1e-10)
    assert_same_samples(gradients, [pieces[i] for i in range(len(batch))])
    for key, pair in stats.items():
        assert sums[key] == pytest.approx([float(x) for x in pair], rel=1e-10, abs=1e-10)


@every_variant
@PROPERTY
@given(batch=calm_batches, data=st.data())
def test_sample_order_does_not_matter(name, mode, branch, batch, data):
    estimator = make(name, mode, branch)
    order = data.draw(st.permutations(range(len(batch))))
    whole, gradients, _ = loss_and_gradients(estimator, batch)
    loss, permuted, _ = loss_and_gradients(estimator, [batch[i] for i in order])
    assert loss == pytest.approx(whole, rel=1e-10, abs=1e-10)
    assert_same_samples([gradients[i] for i in order], permuted)


@every_variant_and_official
@PROPERTY
@given(batch=calm_batches, data=st.data())
def test_names_of_groups_do_not_matter(name, mode, branch, batch, data):
    estimator = make(name, mode, branch)
    labels = data.draw(st.permutations([-7, 0, 12, 10**9]))
    renamed = [replace(line, group=labels[line.group]) for line in batch]
    whole, gradients, _ = loss_and_gradients(estimator, batch)
    loss, others, _ = loss_and_gradients(estimator, renamed)
    assert loss == pytest.approx(whole, rel=1e-12, abs=1e-12)
    assert_same_samples(gradients, others)


@every_variant
@PROPERTY
@given(batch=calm_batches)
def test_streamed_groups_weigh_what_the_whole_step_does(name, mode, branch, batch):
    """Where no term needs all samples, weighing group by group gives the same weights."""
    estimator = make(name, mode, branch)
    if estimator.needs_all_samples:
        return
    whole = weigh(estimator, batch)
    for group in {line.group for line in batch}:
        chosen = [i for i, line in enumerate(batch) if line.group == group]
        alone, expected = weigh(estimator, [batch[i] for i in chosen]), pick(whole, batch, chosen)
        lengths = np.array([len(batch[i].now) for i in chosen])
        np.testing.assert_allclose(alone.token_advantages(lengths), expected.advantages, atol=1e-12)
        np.testing.assert_allclose(alone.scales, expected.scales, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["rloo", "grpo", "dr_grpo", "dapo", "cispo", "gspo", "luffy", "rl_plus", "chord_mu", "hpt"]
)
@PROPERTY
@given(batch=st.lists(lines(rewards=st.just(0.7)), max_size=8))
def test_equal_rewards_give_exactly_zero_on_rollouts(name, batch):
    found = make_estimator(name).coefficients(build(batch))
    is_rollout = ~build(batch).is_demo.repeat_interleave(build(batch).sample_lengths)
    assert found[is_rollout].eq(0).all()


@every_variant_and_official
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@PROPERTY
@given(batch=batches)
def test_nothing_is_nan_or_infinite(name, mode, branch, dtype, batch):
    """Log-probs from −1e-8 to −60, samples of one token, groups of one, empty streams, no samples at all."""
    estimator = make(name, mode, branch, entropy_coef=0.01)
    loss, gradients, stats = loss_and_gradients(estimator, batch, dtype=dtype)
    assert np.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert estimator.coefficients(build(batch, dtype), weigh(estimator, batch)).isfinite().all()
    assert all(total.isfinite() for total, _ in stats.values())


@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("name", ["reinforce", "grpo", "hpt"])
@PROPERTY
@given(batch=batches)
def test_corrected_coefficients_are_bounded(name, correction, batch):
    """|c| ≤ |Â| · correction_high, whatever the sampler said."""
    estimator = make_estimator(name, correction=correction, rollout_advantage="signed")
    samples = build(batch)
    weights = weigh(estimator, batch)
    found = estimator.term_coefficients(samples, weights)[0]
    advantages = torch.as_tensor(weights.token_advantages(samples.sample_lengths.numpy()))[0]
    assert (found.abs() <= advantages.abs() * 2 * (1 + 1e-12)).all()


@every_variant_and_official
@PROPERTY
@given(batch=calm_batches)
def test_samples_of_weight_zero_add_nothing_and_count_nowhere(name, mode, branch, batch):
    """As if a dropped prompt were not there (its rewards still shape its own group only)."""
    estimator = make(name, mode, branch)
    silent = [replace(line, group=line.group + 4, weight=0.0) for line in batch]
    whole, gradients, _ = loss_and_gradients(estimator, batch)
    loss, both, _ = loss_and_gradients(estimator, batch + silent)
    if mode != "official":  # there they take room in the virtual micro-batches
        assert loss == pytest.approx(whole, rel=1e-12, abs=1e-12)
        assert_same_samples(gradients, both[: len(batch)])
    assert all(gradient.eq(0).all() for gradient in both[len(batch) :])


def test_variants_cover_the_table():
    assert {name for name, _, _ in VARIANTS} | {"srft_official"} == set(ALGORITHMS)
