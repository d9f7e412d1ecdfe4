"""`policy_loss` on padded tensors is what the learner computes on the same samples: loss, gradient and metrics."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from hpt_ray.algorithms import BatchShape, make_estimator, policy_loss, sample_weights
from hpt_ray.algorithms.gates import GATES, samples_of
from hpt_ray.errors import UserError
from hpt_ray.learner.packing import make_micro_batch, micro_batch_loss
from hpt_ray.learner.scoring import weight_samples
from hpt_ray.types import Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

ROLLOUTS, T, C = 4, 7, 9
REWARDS = ((1, 0, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 0))
ALGORITHMS = ("sft", "grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo", "luffy", "srft", "hpt")


class Material:
    """Four prompts with rollouts and a demonstration each, as padded tensors and as groups of a run."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(3)
        width = ROLLOUTS + 1
        samples = len(REWARDS) * width
        self.group_ids = torch.arange(samples) // width
        self.is_demo = torch.arange(samples) % width == ROLLOUTS
        self.lengths = torch.randint(1, T + 1, (samples,), generator=random)
        self.mask = torch.arange(T) < self.lengths[:, None]
        self.logits = torch.randn(samples, T, 5, generator=random, dtype=torch.float64).requires_grad_()
        drift = 0.3 * torch.randn(samples, T, 5, generator=random, dtype=torch.float64)
        self.logprobs = self.logits.log_softmax(-1)[..., 0]
        self.entropy = -(self.logits.log_softmax(-1).exp() * self.logits.log_softmax(-1)).sum(-1)
        self.old = (self.logits.detach() + drift).log_softmax(-1)[..., 0].float().double()
        self.old[self.is_demo] = float("nan")
        self.rewards = torch.tensor([[*group, 1] for group in REWARDS]).flatten().double()
        self.batch = BatchShape(num_prompts=len(REWARDS), num_rollouts=ROLLOUTS, max_response_tokens=C)

    def groups(self) -> list[Group]:
        groups = []
        for g, rewards in enumerate(REWARDS):
            rows = [g * (ROLLOUTS + 1) + i for i in range(ROLLOUTS + 1)]
            ids = [np.zeros(int(self.lengths[row]), np.int32) for row in rows]
            prompt = Prompt(str(g), np.zeros(1, np.int32), "", "", "", Demonstration(ids[-1], ""))
            old = [self.old[row][self.mask[row]].numpy().astype(np.float32) for row in rows]
            rollouts = [Rollout(str(g), i, ids[i], old[i], FinishReason.STOP, 0, "") for i in range(ROLLOUTS)]
            results = [RewardResult(float(r), Outcome.CORRECT if r else Outcome.WRONG) for r in rewards]
            groups.append(Group(prompt, rollouts, results))
        return groups


def loss_of_the_learner(material: Material, estimator, gate: str, gamma: float):
    """All samples that count in one micro-batch."""
    samples, rows = [], []
    for g, group in enumerate(material.groups()):
        decision = GATES[gate].function(group, gamma, ())
        first = g * (ROLLOUTS + 1)
        if decision.rollout_weight > 0:
            rows += range(first, first + ROLLOUTS)
        if decision.demo_weight > 0:
            rows.append(first + ROLLOUTS)
        samples += samples_of(group, decision, index=g)
    row_of = {id(sample): row for sample, row in zip(samples, rows, strict=True)}
    weighed = weight_samples(estimator, samples, material.batch).samples
    micro_batch = make_micro_batch(weighed)
    kept = [row_of[id(one.sample)] for one in weighed]
    inside = material.mask[kept]
    return micro_batch_loss(
        estimator,
        micro_batch,
        material.logprobs[kept][inside],
        material.entropy[kept][inside],
        torch.from_numpy(micro_batch.old_logprobs),
    )


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kept", [{}, {"entropy_coef": 0.01}], ids=["", "entropy bonus"])
def test_loss_and_gradient_are_the_learners(name: str, kept: dict) -> None:
    material, estimator = Material(), make_estimator(name, **kept)
    theirs, stats = loss_of_the_learner(material, estimator, estimator.gate, 0.0)
    mine, metrics = loss_of(material, estimator)
    expected, gradient = (
        torch.autograd.grad(loss, material.logits, retain_graph=True)[0] for loss in (theirs, mine)
    )
    assert expected.abs().max() > 1e-4
    assert (gradient - expected).abs().max() < 1e-7  # a micro-batch carries float32
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert metrics == pytest.approx(
        {key: float(total / count) for key, (total, count) in stats.items() if count}, abs=1e-6
    )


def loss_of(material: Material, estimator, gamma: float = 0.0, gate: str | None = None):
    weights = sample_weights(
        estimator,
        material.lengths,
        material.rewards,
        material.group_ids,
        material.is_demo,
        gamma=gamma,
        gate=gate,
        batch=material.batch,
    )
    return policy_loss(
        estimator,
        material.logprobs,
        material.mask,
        weights,
        old_logprobs=material.old,
        entropy=material.entropy,
    )


@pytest.mark.parametrize(
    ("gate", "gamma"), [("switch", 0.25), ("posterior", 0.25), ("linear", 0.0), ("official_soft", 0.0)]
)
def test_gates_weigh_as_in_a_run(gate: str, gamma: float) -> None:
    material, estimator = Material(), make_estimator("hpt", mode="paper")
    theirs, _ = loss_of_the_learner(material, estimator, gate, gamma)
    mine, _ = loss_of(material, estimator, gamma, gate)
    expected, gradient = (
        torch.autograd.grad(loss, material.logits, retain_graph=True)[0] for loss in (theirs, mine)
    )
    assert expected.abs().max() > 1e-4
    assert (gradient - expected).abs().max() < 1e-7


def test_micro_batches_add_up_to_the_step() -> None:
    material, estimator = Material(), make_estimator("hpt")
    sizes = material.lengths, material.rewards, material.group_ids, material.is_demo
    weights = sample_weights(estimator, *sizes, batch=material.batch)
    whole, _ = loss_of(material, estimator)
    rows = torch.randperm(len(material.lengths), generator=torch.Generator().manual_seed(0))
    parts = [
        policy_loss(
            estimator,
            material.logprobs[some],
            material.mask[some],
            weights.of(some),
            old_logprobs=material.old[some],
        )[0]
        for some in rows.split(3)
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=1e-12)


def test_a_sample_without_tokens_weighs_nothing_and_leaves_its_group() -> None:
    estimator = make_estimator("dr_grpo", length_constant=4)
    weights = sample_weights(estimator, [2, 0, 2], [1, 0, 0], [0, 0, 0])
    assert weights.advantages.tolist() == [[0.5, 0.0, -0.5]]
    logprobs = torch.randn(3, 2, requires_grad=True)
    loss, _ = policy_loss(estimator, logprobs, torch.tensor([[1, 1], [0, 0], [1, 1]]), weights)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[1].tolist() == [0, 0]


def test_samples_that_all_weigh_nothing_give_zero_with_a_gradient() -> None:
    estimator = make_estimator("grpo")
    logprobs = torch.randn(2, 3, requires_grad=True)
    loss, metrics = policy_loss(
        estimator, logprobs, torch.ones(2, 3), sample_weights(estimator, [3, 3], [1, 1], [0, 0])
    )
    loss.backward()
    assert (loss.item(), metrics) == (0.0, {})
    assert logprobs.grad is not None
    assert not logprobs.grad.any()


def test_what_cannot_be_weighed_so_is_refused() -> None:
    with pytest.raises(ValueError, match="ppo has a critic"):
        sample_weights(make_estimator("ppo"), [1], [1], [0])
    with pytest.raises(ValueError, match="opd has a critic or a teacher"):
        sample_weights(make_estimator("opd"), [1], [1], [0])
    with pytest.raises(ValueError, match="kl_token_rewards"):
        sample_weights(make_estimator("grpo", kl_coef=0.1, kl_in="reward"), [1], [1], [0])
    with pytest.raises(UserError, match=r"gate=swich: no such name\. Did you mean switch"):
        sample_weights(make_estimator("hpt"), [1], [1], [0], gate="swich")


def test_the_library_imports_no_engine() -> None:
    code = (
        "import sys, hpt_ray.algorithms as a; a.make_estimator('hpt'); "
        "print(sorted({'ray', 'vllm', 'deepspeed', 'transformers', 'omegaconf'} & sys.modules.keys()))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert child.stdout == "[]\n"
