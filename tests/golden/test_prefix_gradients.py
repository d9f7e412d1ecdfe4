"""Rollouts that continue a prefix: from groups through `samples_of` to the gradient, against the loss of the paper.

The losses are written here over whole responses, prefix and continuation in one piece, in float64 on a small network;
the package trains the two as samples of their own.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_algorithms import HIDDEN, TOLERANCE, VOCABULARY, policy, ppo_clip
from torch import Tensor

from hpt_ray.algorithms import BatchShape, TokenBatch, make_estimator
from hpt_ray.algorithms.gates import GATES, samples_of
from hpt_ray.learner.scoring import weight_samples
from hpt_ray.types import Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout, Sample

N, C = 4, 16
REWARDS = ((1, 0, 0, 1), (0, 0, 0, 1), (1, 1, 0, 0))
# Of three prompts: how many tokens of the demonstration each rollout continues.
ONE = ((0, 0, 0, 7), (0, 0, 0, 5), (0, 0, 0, 0))
ALL = ((7,) * N, (3,) * N, (0,) * N)


def make_groups(parameters: list[Tensor], prefixes: tuple[tuple[int, ...], ...]) -> list[Group]:
    random = np.random.default_rng(3)
    groups = []
    for g, (rewards, lengths) in enumerate(zip(REWARDS, prefixes, strict=True)):
        ids = random.integers(0, VOCABULARY, 12).astype(np.int32)
        prompt = Prompt(f"{g}", ids[:3], "", "", "", Demonstration(ids[3:], ""))
        rollouts = []
        for i, k in enumerate(lengths):
            sampled = random.integers(0, VOCABULARY, random.integers(2, 7)).astype(np.int32)
            tokens = np.concatenate([ids[3 : 3 + k], sampled])
            logprobs = scored(parameters, prompt, tokens)[0].detach().numpy()
            drawn = logprobs + random.normal(0, 0.2, len(tokens))  # the policy has moved since
            drawn[:k] = np.nan
            rollouts.append(Rollout(f"{g}", i, tokens, drawn, FinishReason.STOP, 0, "", k))
        results = [RewardResult(float(r), Outcome.CORRECT if r else Outcome.WRONG) for r in rewards]
        groups.append(Group(prompt, rollouts, results))
    return groups


def scored(parameters: list[Tensor], prompt: Prompt, response: np.ndarray) -> tuple[Tensor, Tensor]:
    """log π and entropy of each token of a response, whole."""
    tokens = torch.from_numpy(np.concatenate([prompt.token_ids, response])).long()
    logprob, entropy = policy(parameters, tokens)
    return logprob[len(prompt.token_ids) :], entropy[len(prompt.token_ids) :]


def tokens_of(parameters: list[Tensor], samples: list[Sample]) -> TokenBatch:
    found = [policy(parameters, torch.from_numpy(sample.token_ids).long()) for sample in samples]
    starts = [sample.prompt_length for sample in samples]
    return TokenBatch(
        logprobs=torch.cat([logprob[start:] for (logprob, _), start in zip(found, starts, strict=True)]),
        old_logprobs=torch.from_numpy(np.concatenate([sample.old_logprobs for sample in samples])),
        sample_lengths=torch.tensor([sample.response_length for sample in samples]),
        group_ids=torch.tensor([sample.group for sample in samples]),
        rewards=torch.tensor([sample.reward for sample in samples]),
        is_demo=torch.tensor([sample.is_demo for sample in samples]),
        entropy=torch.cat([entropy[start:] for (_, entropy), start in zip(found, starts, strict=True)]),
    )


def ratio_of(logprob: Tensor, rollout: Rollout) -> Tensor:
    """π_θ/π_old; in the prefix, which nobody sampled, π_old is the policy as the update begins."""
    old = torch.from_numpy(rollout.logprobs)
    return (logprob - torch.where(old.isnan(), logprob.detach(), old)).exp()


def drawn_again(parameters: list[Tensor], before: list[Group]) -> list[Group]:
    """The groups after a first draw in which all rollouts were wrong."""
    first = make_groups(parameters, ((0,) * N,) * 3)
    return [
        Group(
            group.prompt,
            [replace(r, superseded=True) for r in wrong.rollouts] + group.rollouts,
            [RewardResult(0.0, Outcome.WRONG)] * N + group.results,
        )
        for wrong, group in zip(first, before, strict=True)
    ]


def bread(parameters: list[Tensor], groups: list[Group]) -> Tensor:
    """GRPO on the last N rollouts of each prompt, after prompt and prefix."""
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        pairs = [*group.pairs][-N:]
        rewards = torch.tensor([result.score for _, result in pairs], dtype=torch.float64)
        for rollout, result in pairs:
            logprob, _ = scored(parameters, group.prompt, rollout.token_ids)
            advantage = (result.score - rewards.mean()) / (rewards.std() + 1e-6)
            total = total - ppo_clip(ratio_of(logprob, rollout), advantage)[rollout.prefix_length :].mean()
    return total / (len(groups) * N)


def prefix_rft(parameters: list[Tensor], groups: list[Group]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        rewards = torch.tensor([result.score for result in group.results], dtype=torch.float64)
        for rollout, result in group.pairs:
            logprob, entropy = scored(parameters, group.prompt, rollout.token_ids)
            k = rollout.prefix_length
            mask = torch.ones(len(logprob))
            mask[:k] = 0
            mask[entropy[:k].topk(math.ceil(k / 5)).indices] = 1
            objective = ppo_clip(ratio_of(logprob, rollout), result.score - rewards.mean())
            total = total - (mask * objective).sum()
    return total / (len(groups) * N * C)


def uft(parameters: list[Tensor], groups: list[Group]) -> Tensor:
    """Of every rollout its own tokens by GRPO and its prefix by its likelihood, each a mean over tokens."""
    objectives, likelihoods = [], []
    for group in groups:
        rewards = torch.tensor([result.score for result in group.results], dtype=torch.float64)
        for rollout, result in group.pairs:
            logprob, _ = scored(parameters, group.prompt, rollout.token_ids)
            k = rollout.prefix_length
            advantage = (result.score - rewards.mean()) / (rewards.std() + 1e-6)
            objectives.append(ppo_clip(ratio_of(logprob, rollout), advantage)[k:])
            likelihoods.append(logprob[:k])
    return -torch.cat(objectives).mean() - 0.001 * torch.cat(likelihoods).mean()


@pytest.mark.parametrize(
    ("name", "classical", "prefixes", "num_prefixes"),
    [("prefix_rft", prefix_rft, ONE, 2), ("uft", uft, ALL, 2), ("bread", bread, ALL, 0)],
)
def test_gradient_equals_the_loss_of_the_paper(name, classical, prefixes, num_prefixes):
    random = torch.Generator().manual_seed(8)
    shapes = ((VOCABULARY, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, VOCABULARY))
    parameters = [torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes]
    groups = make_groups(parameters, prefixes)
    groups = drawn_again(parameters, groups) if name == "bread" else groups
    estimator = make_estimator(name, length_constant=C)
    gate, with_prefixes = GATES[estimator.gate], estimator.trains_prefixes
    samples = [
        sample
        for i, group in enumerate(groups)
        for sample in samples_of(group, gate.function(group, 0.0, ()), index=i, prefixes=with_prefixes)
    ]
    # a prefix that all continue is there once
    assert sum(sample.is_demo for sample in samples) == num_prefixes
    weighed = weight_samples(estimator, samples, BatchShape(len(groups), N, C))
    tokens = tokens_of(parameters, samples)
    loss, stats = estimator.loss(tokens, batch=BatchShape(len(groups), N, C))
    mine = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(classical(parameters, groups), parameters)
    assert max(grad.abs().max() for grad in theirs) > 1e-4
    assert max((a - b).abs().max() for a, b in zip(mine, theirs, strict=True)) <= TOLERANCE
    assert 0 < stats["policy/clip_share"][0] < stats["policy/clip_share"][1]
    assert weighed.num_skipped == 0
