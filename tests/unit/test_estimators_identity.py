"""Eq 3 of arXiv 2509.04419 on a policy that can be enumerated: softmax over five sequences.

The exact gradient of J_μ = E_π[r] − μ KL(π_β‖π) by autograd, against the estimator's expectation:
the sum over all sequences, each weighted by the probability of drawing it.
"""

import numpy as np
import pytest
import torch

from hpt_ray.algorithms import BatchShape, SampleWeights, TokenBatch, make_estimator

MU = 0.7
NUM = 5
BATCH = BatchShape(num_prompts=1, num_rollouts=1, max_response_tokens=1)
RANDOM = torch.Generator().manual_seed(3)
THETA = torch.randn(NUM, generator=RANDOM, dtype=torch.float64).requires_grad_()
REWARD = torch.tensor([1.0, 0.0, 1.0, 0.3, 0.0], dtype=torch.float64)
DEMONSTRATOR = torch.softmax(torch.randn(NUM, generator=RANDOM, dtype=torch.float64), 0)  # π_β
OLD = torch.softmax(torch.randn(NUM, generator=RANDOM, dtype=torch.float64), 0)
FAR = torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01], dtype=torch.float64)


def gradient(loss):
    return torch.autograd.grad(loss, THETA)[0]


def rl_gradient():
    return gradient((torch.softmax(THETA, 0) * REWARD).sum())


def sft_gradient():
    """μ ∇E_{π_β}[log π_θ], which is −μ ∇KL(π_β‖π_θ): the cross-entropy differs by a constant."""
    logprob = torch.log_softmax(THETA, 0)
    return gradient(-MU * (DEMONSTRATOR * (DEMONSTRATOR.log() - logprob)).sum())


def all_sequences(drawn_from, is_demo):
    """Every sequence as a sample of one token; `drawn_from` is the density of π_old on it."""
    return TokenBatch(
        logprobs=torch.log_softmax(THETA, 0),
        old_logprobs=drawn_from.log() if not is_demo else torch.full((NUM,), torch.nan, dtype=torch.float64),
        sample_lengths=torch.ones(NUM, dtype=torch.long),
        group_ids=torch.zeros(NUM, dtype=torch.long),
        rewards=REWARD,
        is_demo=torch.full((NUM,), is_demo),
    )


def expectation(estimator, density, is_demo=False):
    """Gradient ascended by the estimator when each sequence comes with probability `density`."""
    samples = all_sequences(density, is_demo)
    weights = estimator.weigh(
        samples.sample_lengths, samples.group_ids, samples.rewards, samples.is_demo, density.detach(), BATCH
    )
    return -gradient(estimator.loss(samples, weights)[0])


@pytest.mark.parametrize("density", [OLD, FAR, DEMONSTRATOR], ids=["old", "far", "demonstrator"])
def test_old_policy_denominator_is_unbiased_for_any_sampler(density):
    estimator = make_estimator(
        "grpo", rollout_advantage="reward", rollout_clip="none", rollout_loss_aggregation="seq-mean-token-sum"
    )
    assert (expectation(estimator, density) - rl_gradient()).abs().max() < 1e-14


def test_a_teacher_gives_the_gradient_of_the_reverse_kl():
    """E_π[(log π_T − log π) ∇log π] = −∇KL(π‖π_T), for the mean of ∇log π is 0."""
    samples = all_sequences(torch.softmax(THETA, 0).detach(), is_demo=False)
    teacher = DEMONSTRATOR.log()
    density = torch.softmax(THETA, 0).detach()
    estimator = make_estimator("opd", rollout_loss_aggregation="seq-mean-token-sum")
    weights = estimator.weigh(
        samples.sample_lengths,
        samples.group_ids,
        samples.rewards,
        samples.is_demo,
        density,
        BATCH,
        teacher_gaps=teacher - samples.old_logprobs,
    )
    logprob = torch.log_softmax(THETA, 0)
    reverse_kl = (logprob.exp() * (logprob - teacher)).sum()
    assert (gradient(estimator.loss(samples, weights)[0]) - gradient(reverse_kl)).abs().max() < 1e-14


def test_current_policy_denominator_is_unbiased_on_its_own_samples():
    estimator = make_estimator("reinforce", rollout_advantage="reward")
    density = torch.softmax(THETA, 0)
    assert (expectation(estimator, density) - rl_gradient()).abs().max() < 1e-14
    assert (expectation(estimator, OLD) - rl_gradient()).abs().max() > 1e-3  # and on no others


def test_unit_denominator_is_exact_when_every_sequence_comes_once():
    estimator = make_estimator(
        "sft", demo_advantage="reward", demo_denominator="one", demo_loss_aggregation="seq-mean-token-sum"
    )
    found = expectation(estimator, torch.ones(NUM, dtype=torch.float64), is_demo=True)
    assert (found - rl_gradient()).abs().max() < 1e-14


def test_sft_is_the_gradient_of_the_forward_kl():
    estimator = make_estimator("sft", demo_coef=MU)
    found = expectation(estimator, DEMONSTRATOR, is_demo=True)
    assert (found - sft_gradient()).abs().max() < 1e-14


@pytest.mark.parametrize("density", [OLD, FAR, DEMONSTRATOR], ids=["old", "far", "demonstrator"])
def test_unified_advantage_gives_the_whole_objective(density):
    """A_uni = r + μ π_β/π_θ with π_ref = the sampler: one stream carries both objectives."""
    estimator = make_estimator("hpt")  # its rollout term: π_ref = π_old, no mask
    samples = all_sequences(density, is_demo=False)
    unified = REWARD + MU * DEMONSTRATOR / torch.softmax(THETA, 0).detach()
    weights = SampleWeights(
        advantages=torch.stack([unified, torch.zeros(NUM)]),
        scales=torch.stack([density, torch.zeros(NUM)]),
        entropy_scales=np.zeros(NUM),
        kl_scales=np.zeros(NUM),
    )
    found = -gradient(estimator.loss(samples, weights)[0])
    assert (found - (rl_gradient() + sft_gradient())).abs().max() < 1e-13


def test_two_streams_give_the_whole_objective():
    """HPT with both weights on: rollouts from π_old and demonstrations from π_β, added up."""
    estimator = make_estimator(
        "hpt", rollout_advantage="reward", rollout_loss_aggregation="seq-mean-token-sum", demo_coef=MU
    )
    total = expectation(estimator, OLD) + expectation(estimator, DEMONSTRATOR, is_demo=True)
    assert (total - (rl_gradient() + sft_gradient())).abs().max() < 1e-14


def test_a_baseline_leaves_the_expectation_as_it_is():
    estimator = make_estimator(
        "grpo", rollout_advantage="reward", rollout_clip="none", rollout_loss_aggregation="seq-mean-token-sum"
    )
    plain = expectation(estimator, OLD)
    samples = all_sequences(OLD, is_demo=False)
    weights = estimator.weigh(
        samples.sample_lengths, samples.group_ids, samples.rewards - 0.4, samples.is_demo, OLD, BATCH
    )
    assert (-gradient(estimator.loss(samples, weights)[0]) - plain).abs().max() < 1e-14
