"""Rehearsal beside every algorithm: its gradient is that of a loss written by hand, and the others' stays as it was."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_algorithms import CLASSICAL, TOLERANCE, VOCABULARY, C, make_case, policy

from hpt_ray.algorithms import BatchShape, SampleWeights, TokenBatch, make_estimator

LENGTHS = (4, 1, 6)


def rows_of(parameters, lengths=LENGTHS, tokens=None):
    """Rows of rehearsal as a forward pass gives them."""
    random = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, VOCABULARY, (sum(lengths),), generator=random) if tokens is None else tokens
    parts = [policy(parameters, part) for part in tokens.split(lengths)]
    count = len(lengths)
    return TokenBatch(
        logprobs=torch.cat([logprob for logprob, _ in parts]),
        old_logprobs=torch.full((sum(lengths),), torch.nan, dtype=torch.float64),
        sample_lengths=torch.tensor(lengths),
        group_ids=torch.zeros(count, dtype=torch.long),  # as the first prompt's: rows are weighed apart
        rewards=torch.ones(count, dtype=torch.float64),
        is_demo=torch.ones(count, dtype=torch.bool),
        is_rehearsal=torch.ones(count, dtype=torch.bool),
        entropy=torch.cat([entropy for _, entropy in parts]),
        values=torch.zeros(sum(lengths), dtype=torch.float64),
        ref_logprobs=torch.cat([logprob.detach() for logprob, _ in parts]) - 0.3,
    )


def weights_of(estimator, samples, batch):
    gaps = (samples.ref_logprobs - samples.old_logprobs).detach().nan_to_num()
    weights = estimator.weigh(
        samples.sample_lengths,
        samples.group_ids,
        samples.rewards,
        samples.is_demo,
        np.ones(len(samples.is_demo)),
        batch,
        is_rehearsal=samples.is_rehearsal,
        values=samples.values,
        teacher_gaps=gaps,
    )
    return replace(weights, advantages=weights.token_advantages(samples.sample_lengths.numpy()))


def joined(one, other):
    """The samples of two batches, or their weights, in one."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    if isinstance(one, SampleWeights):
        return SampleWeights(*(np.concatenate(pair, axis=-1) for pair in pairs))
    return TokenBatch(*(None if None in pair else torch.cat(pair) for pair in pairs))


@pytest.mark.parametrize(("name", "mode", "branch"), CLASSICAL, ids=lambda x: str(x))
def test_gradient_is_that_of_the_algorithm_and_of_the_rows_likelihood(name, mode, branch):
    """Both in the same forward pass; no weight of the algorithm's own samples is another than without the rows."""
    streams, classical = CLASSICAL[name, mode, branch]
    alone = make_estimator(name, mode=mode, offline_branch=branch, length_constant=C)
    case = make_case(*streams, prefixes=alone.trains_prefixes)
    own = replace(case.samples, is_rehearsal=torch.zeros(len(case.samples.is_demo), dtype=torch.bool))
    rows = rows_of(case.parameters)
    estimator = alone.rehearsing()
    weights = weights_of(estimator, own, case.batch)
    both = joined(weights, weights_of(estimator, rows, case.batch))
    loss, stats = estimator.loss(replace(joined(own, rows), prompt_lengths=None), both)

    num_prompts = 3
    by_hand = -sum(part.mean() for part in rows.logprobs.split(LENGTHS)) / num_prompts
    expected = case.gradient(classical(case)) + case.gradient(by_hand)
    assert case.gradient(by_hand).abs().max() > 1e-2
    assert (case.gradient(loss) - expected).abs().max() <= TOLERANCE

    before = weights_of(alone, own, case.batch)
    assert (weights.advantages[:-1] == before.advantages).all()
    assert (weights.scales[:-1] == before.scales).all()
    assert (weights.entropy_scales == before.entropy_scales).all()
    assert not weights.scales[-1].any()
    without = alone.loss(own, before)[1]
    total, count = stats.pop("learner/rehearsal_loss")
    assert float(total / count) == pytest.approx(-rows.logprobs.detach().mean())
    means, expected_means = (
        {key: float(total / count) for key, (total, count) in found.items() if count}
        for found in (stats, without)
    )
    assert means == pytest.approx(expected_means)


def test_the_rows_of_a_base_give_the_gradient_of_the_forward_kl():
    """Every response of three tokens, weighed by its probability under the base, against autograd of the KL itself."""
    length = 3
    case = make_case()
    base = [p.detach() + 0.5 for p in case.parameters]
    estimator = make_estimator("grpo").rehearsing()
    kl = torch.zeros((), dtype=torch.float64)
    mean = torch.zeros(sum(p.numel() for p in case.parameters), dtype=torch.float64)
    for response in itertools.product(range(VOCABULARY), repeat=length):
        row = rows_of(case.parameters, (length,), torch.tensor(response))
        of_base = policy(base, torch.tensor(response))[0].sum()
        kl = kl + of_base.exp() * (of_base - row.logprobs.sum())
        batch = BatchShape(num_prompts=1, num_rollouts=4, max_response_tokens=8)
        mean += of_base.exp() * case.gradient(estimator.loss(row, weights_of(estimator, row, batch))[0])
    assert kl > 0.1
    assert (mean - case.gradient(kl) / length).abs().max() <= TOLERANCE
