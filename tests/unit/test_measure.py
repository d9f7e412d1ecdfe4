"""The meter of bias and variance against closed forms, on a bandit and on a tree that can be enumerated."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
import torch
from worlds import BANDIT, TREE, Enumerated, World, projected

from hpt_ray.algorithms import BatchShape, TokenBatch, make_estimator
from hpt_ray.tools.measure.estimate import Interval, quality
from hpt_ray.tools.measure.gradients import Meter, Method
from hpt_ray.tools.measure.projection import Projection

N = 3  # rollouts of a group
REWARDS = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]]
SUM = {"rollout_loss_aggregation": "seq-mean-token-sum"}
METHODS = {
    "reward": make_estimator("reinforce", rollout_advantage="reward"),
    "reinforce": make_estimator("reinforce"),
    "rloo": make_estimator("rloo"),
    "group_mean": make_estimator("rloo", rollout_advantage="group_mean"),
    "group_std": make_estimator("rloo", rollout_advantage="group_std"),
    "length": make_estimator("rloo", rollout_loss_aggregation="seq-mean-token-mean"),
    "sft": make_estimator("sft", demo_loss_aggregation="seq-mean-token-sum"),
    "hpt": make_estimator("hpt", rollout_coef=2.0, demo_coef=0.5, **SUM),
}
WORLDS = {"bandit": World.make(BANDIT, REWARDS), "tree": World.make(TREE, REWARDS)}


def methods(**estimators):
    return {name: Method.of(estimator, 3) for name, estimator in estimators.items()}


@pytest.fixture(scope="module")
def known() -> dict[str, Enumerated]:
    return {name: world.enumerated(methods(**METHODS), N) for name, world in WORLDS.items()}


def exact(found: Enumerated, name: str) -> dict[str, float]:
    mean, square = found.moments(name)
    truth = found.truth.mean(0)
    mm, mt, tt = mean @ mean, mean @ truth, truth @ truth
    return {
        "scale": mt / tt,
        "gap": (mm - 2 * mt + tt) / tt,
        "cosine": mt / sqrt(mm * tt),
        "bias": 1 - max(mt, 0) ** 2 / mm / tt,
        "mean_square": mm,
        "variance": square - mm,
        "noise": (square - mm) / mm,
        "snr": mm / (square - mm),
    }


# ---- the means are those of theory -------------------------------------------------------------------


def by_hand(world: World, function) -> np.ndarray:
    """E of a function of (rewards, scores, the demonstration's score) of a group, without anything of the product."""
    total, scores = np.zeros(world.theta.numel()), world.scores()
    for prompt, picks in product(range(len(world.rewards)), product(range(len(world.leaves)), repeat=N)):
        chance, rewards = np.prod(world.chances[list(picks)]), world.rewards[prompt][list(picks)]
        total += chance * function(rewards, scores[list(picks)], scores[world.demo])
    return projected(world, total / len(world.rewards))


@pytest.mark.parametrize("name", WORLDS)
def test_means_equal_their_closed_form(known, name) -> None:
    world, found = WORLDS[name], known[name]
    truth = found.truth.mean(0)
    length = len(world.leaves[world.demo])
    closed = {
        "reward": truth,
        "reinforce": 2 * truth,  # rewards of ±1 are twice as far apart
        "rloo": truth,
        "group_mean": (N - 1) / N * truth,
        "sft": projected(world, world.scores()[world.demo]),
        "hpt": by_hand(  # the mixture of the gate's branches
            world, lambda r, s, demo: 2.0 * (r - r.mean()) @ s / N if r.any() else 0.5 * demo / length
        ),
    }
    for method, expected in closed.items():
        np.testing.assert_allclose(found.moments(method)[0], expected, atol=1e-6, err_msg=method)


def std_scale(p: float, n: int) -> float:
    """E[Â|right] − E[Â|wrong] of (R − mean)/std with n rollouts, each right with chance p."""
    total = 0.0
    for others in range(n):  # right ones among the n − 1 others
        chance = comb(n - 1, others) * p**others * (1 - p) ** (n - 1 - others)
        for reward in (1, 0):
            right = others + reward
            std = sqrt(right * (n - right) / n / (n - 1))
            total += chance * (2 * reward - 1) * ((reward - right / n) / std if std else 0.0)
    return total


@pytest.mark.parametrize("name", WORLDS)
def test_the_std_of_the_group_weighs_prompts_by_their_difficulty(known, name) -> None:
    """With rewards of 0 and 1 it turns no prompt's gradient; the rarer success (or failure), the more it counts."""
    world, found = WORLDS[name], known[name]
    of_prompts = np.einsum("g,pgd->pd", found.chances, found.gradients["group_std"])
    for gradient, truth, rate in zip(of_prompts, found.truth, world.rewards @ world.chances, strict=True):
        np.testing.assert_allclose(gradient, std_scale(rate, N) * truth, atol=1e-5)
    assert std_scale(0.02, 8) > std_scale(0.2, 8) > std_scale(0.5, 8) > 1


def test_with_other_rewards_the_std_turns_the_gradient_of_a_prompt() -> None:
    world = World.make(BANDIT, [[1.0, 0.2, 0.0, 0.5]])
    assert exact(world.enumerated(methods(std=METHODS["group_std"]), N), "std")["bias"] > 1e-3


def test_dividing_by_the_length_turns_the_mean_only_where_lengths_differ(known) -> None:
    assert exact(known["bandit"], "length")["bias"] == pytest.approx(0, abs=1e-6)
    assert exact(known["tree"], "length")["bias"] > 1e-3


@pytest.mark.parametrize("leaves", [BANDIT, TREE], ids=["bandit", "tree"])
def test_the_clip_drops_what_goes_further_the_way_it_went(leaves) -> None:
    """Rollouts of an older policy. Weighed by the ratio they have no bias where a response is one token."""
    world = World.make(leaves, REWARDS, old=True)
    weighed = {"rollout_denominator": "old", "rollout_advantage": "reward", **SUM}
    ratio = make_estimator("grpo", **weighed, rollout_clip="none")
    found = world.enumerated(methods(ratio=ratio, clip=make_estimator("grpo", **weighed)), 2)
    if leaves is BANDIT:
        np.testing.assert_allclose(found.moments("ratio")[0], found.truth.mean(0), atol=1e-6)
    moved = projected(world, (world.theta.detach() - world.old).numpy().ravel())
    assert (found.moments("ratio")[0] - found.moments("clip")[0]) @ moved > 0


@pytest.mark.parametrize(("demo", "sign"), [(0, 1), (3, -1)])
def test_sft_goes_with_the_reward_only_where_its_demonstration_does(demo, sign) -> None:
    """Leaf 0 is right for most prompts, leaf 3 for none."""
    world = World.make(TREE, REWARDS, demo=demo)
    found = exact(world.enumerated(methods(sft=METHODS["sft"]), 1), "sft")
    assert np.sign(found["scale"]) == sign
    assert found["gap"] > 1


def test_rollouts_that_continue_a_prefix_have_the_gradient_of_what_follows_it() -> None:
    """Of three leaves that begin with 0, by their chances after it; the prefix trains as a demonstration."""
    world = World.make(TREE, REWARDS, demo=2)
    uft = make_estimator("uft", rollout_advantage="leave_one_out", demo_coef=250, **SUM)  # of its 0.001
    meter = Meter(world.score, {"theta": world.theta}, Projection(world.theta.numel(), seed=0))
    after = [1, 2, 3]
    chances = world.chances / world.chances[after].sum()
    for prompt in range(len(REWARDS)):
        mean = np.zeros(world.theta.numel(), np.float32)
        for picks in product(after, repeat=2):
            group = world.group(prompt, picks)
            rollouts = [replace(rollout, prefix_length=1) for rollout in group.rollouts]
            drawn = meter.draw(methods(uft=uft), replace(group, rollouts=rollouts))["uft"]
            mean += np.prod(chances[list(picks)]) * drawn.gradient
        first = world.logprobs(world.theta, TREE[2])[0]
        own = [world.logprobs(world.theta, TREE[leaf])[1:].sum().exp() for leaf in after]
        value = sum(r * p for r, p in zip(world.rewards[prompt][after], own, strict=True)) + 0.25 * first
        expected = torch.autograd.grad(value, world.theta)[0].numpy().ravel()
        np.testing.assert_allclose(mean, projected(world, expected), atol=1e-6)


@pytest.mark.parametrize("name", ["rloo", "group_std", "hpt"])
def test_a_step_of_many_prompts_is_the_mean_of_theirs(name) -> None:
    """So that its variance is that of one prompt over their number."""
    world, estimator = WORLDS["tree"], METHODS[name]
    meter = Meter(world.score, {"theta": world.theta}, Projection(world.theta.numel(), seed=0))
    picks = [(0, 1, 2), (1, 1, 2), (0, 0, 3), (1, 2, 3)]
    solved = [p for p in range(4) if world.rewards[p][list(picks[p])].any()]
    one_by_one = [meter.draw(methods(it=estimator), world.group(p, picks[p]))["it"].gradient for p in solved]
    leaves = [world.leaves[pick] for p in solved for pick in picks[p]]
    logprobs = torch.cat([world.logprobs(world.theta, leaf) for leaf in leaves])
    step = TokenBatch(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        sample_lengths=torch.tensor([len(leaf) for leaf in leaves]),
        group_ids=torch.tensor(solved).repeat_interleave(N),
        rewards=torch.tensor(np.concatenate([world.rewards[p][list(picks[p])] for p in solved])),
        is_demo=torch.zeros(len(leaves), dtype=torch.bool),
    )
    loss, _ = estimator.loss(step, batch=BatchShape(len(solved), N, 3))
    (gradient,) = torch.autograd.grad(-loss, world.theta)
    np.testing.assert_allclose(np.mean(one_by_one, 0), projected(world, gradient.numpy().ravel()), atol=1e-6)


# ---- what the meter estimates is that, within its intervals --------------------------------------------


def metered(
    found: Enumerated, name: str, random: np.random.Generator, *, num_prompts: int, exactly: bool = False
) -> dict[str, Interval]:
    """One measurement, with the exact reference or a noisy one from draws of its own."""
    prompts, x, squares = found.draw(name, random, num_prompts)
    groups = random.choice(len(found.chances), size=(num_prompts, 8), p=found.chances)
    noisy = found.gradients["rloo"][prompts[:, None], groups].mean(1)
    return quality(x, squares, found.truth[prompts] if exactly else noisy)


@pytest.mark.parametrize("world", WORLDS)
def test_every_number_lies_in_its_interval(known, world) -> None:
    """One large measurement of each method. Three intervals wide, for there are many of them."""
    random = np.random.default_rng(1)
    for name in METHODS:
        found = metered(known[world], name, random, num_prompts=1000)
        truths = exact(known[world], name)
        for quantity in truths.keys() - ({"variance", "noise", "snr"} if name == "sft" else set()):
            interval, truth = found[quantity], truths[quantity]
            assert interval.known
            assert abs(interval.value - truth) < 1.5 * (interval.high - interval.low) / 2 + 1e-6, (
                name,
                quantity,
            )


@pytest.mark.parametrize("world", WORLDS)
def test_what_has_no_bias_shows_none_and_the_others_theirs(known, world) -> None:
    random = np.random.default_rng(2)
    found = {name: metered(known[world], name, random, num_prompts=2000, exactly=True) for name in METHODS}
    for name in ("reward", "rloo"):
        assert found[name]["scale"].holds(1)
        assert found[name]["gap"].holds(0)
    for name in ("reward", "reinforce", "rloo", "group_mean"):
        assert found[name]["bias"].holds(0)
    assert found["reinforce"]["scale"].holds(2)
    assert found["group_mean"]["scale"].holds((N - 1) / N)
    assert found["group_mean"]["scale"].high < 1 < found["group_std"]["scale"].low
    assert found["sft"]["gap"].low > 0.5


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ["rloo", "group_std", "hpt"])
def test_intervals_hold_in_95_of_100_repetitions(known, world, name) -> None:
    """Those of squared biases of 0 are wider. Small squares of few numbers are skewed, so that 0.9 is the least."""
    random, truths = np.random.default_rng(3), exact(known[world], name)
    found = [metered(known[world], name, random, num_prompts=300) for _ in range(100)]
    held = {
        quantity: np.mean([each[quantity].holds(truth) for each in found if each[quantity].known])
        for quantity, truth in truths.items()
        if sum(each[quantity].known for each in found) > 90
    }
    assert held.keys() >= {"scale", "gap", "mean_square", "variance", "snr"}
    assert min(held.values()) >= 0.9
    assert (
        0.92 <= np.mean([held[quantity] for quantity in ("scale", "mean_square", "variance", "snr")]) < 0.99
    )


def test_what_the_prompts_do_not_determine_is_not_told() -> None:
    random = np.random.default_rng(4)
    found = quality(random.normal(size=(20, 50)), np.full(20, 50.0), random.normal(size=(20, 50)))
    assert not found["cosine"].known
    assert not found["scale"].known
    assert found["variance"].holds(50)
    assert str(found["bias"]) == "–"


# ---- the projection ------------------------------------------------------------------------------------


def test_a_projection_keeps_lengths_and_angles_and_adds_up() -> None:
    random = torch.Generator().manual_seed(5)
    a, b = (
        [("w", torch.randn(300, 100, generator=random)), ("v", torch.randn(700, generator=random))]
        for _ in "ab"
    )
    both = [(name, left + right) for (name, left), (_, right) in zip(a, b, strict=True)]
    project = Projection(4096, seed=1)
    np.testing.assert_allclose(project(both), project(a) + project(b), atol=1e-4)
    true = sum(float((left * right).sum()) for (_, left), (_, right) in zip(a, both, strict=True))
    assert project(a) @ project(both) == pytest.approx(true, rel=0.1)
    np.testing.assert_array_equal(project(a), Projection(4096, seed=1)(list(reversed(a))))
    assert np.abs(project(a) - Projection(4096, seed=2)(a)).max() > 1
    short = [("v", torch.randn(700, generator=random))]
    assert np.linalg.norm(project(short)) == pytest.approx(float(short[0][1].norm()), rel=1e-5)
