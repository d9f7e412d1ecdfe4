"""Samples to micro-batches, micro-batches to rounds: the layout by hand."""

import numpy as np
import pytest

from hpt_ray.learner.packing import Packer, WeightedSample, dummy_micro_batch, make_micro_batch
from hpt_ray.types import Sample

DUMMY = dummy_micro_batch(2)


def weighed(
    name: str, prompt: int, response: int, *, is_demo: bool = False, group: int = 0
) -> WeightedSample:
    """A sample of `prompt + response` tokens 0, 1, … with K = 2 terms."""
    old_logprobs = np.full(response, np.nan if is_demo else -1.0, np.float32)
    sample = Sample(
        name,
        np.arange(prompt + response, dtype=np.int32),
        prompt,
        old_logprobs,
        is_demo,
        1.0,
        group,
        weight=1.0,
    )
    return WeightedSample(sample, np.array([[0.5], [0.0]]), np.array([0.25, 0.0]), 0.125, 0.0625)


def sizes(rounds: list) -> list[list[int]]:
    """Tokens of every micro-batch, 0 for dummies."""
    return [
        [0 if micro_batch.is_dummy else micro_batch.num_tokens for micro_batch in micro_batches]
        for micro_batches in rounds
    ]


def test_layout():
    per_token = WeightedSample(weighed("a", 2, 3).sample, np.array([[1, 2, 3], [4, 5, 6]]), np.array([7, 8]))
    micro_batch = make_micro_batch([per_token, weighed("b", 1, 2, is_demo=True, group=5)])
    assert micro_batch.token_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert micro_batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert micro_batch.sample_lengths.tolist() == [5, 3]
    assert micro_batch.response_lengths.tolist() == [3, 2]
    assert micro_batch.old_logprobs[:3].tolist() == [-1, -1, -1]
    assert np.isnan(micro_batch.old_logprobs[3:]).all()
    assert micro_batch.advantages.tolist() == [[1, 2, 3, 0.5, 0.5], [4, 5, 6, 0, 0]]
    assert micro_batch.scales.tolist() == [[7, 0.25], [8, 0]]
    assert micro_batch.entropy_scales.tolist() == [0, 0.125]
    assert micro_batch.kl_scales.tolist() == [0, 0.0625]
    assert micro_batch.group_ids.tolist() == [0, 5]
    assert micro_batch.is_demo.tolist() == [False, True]
    assert not micro_batch.is_dummy
    assert {micro_batch.token_ids.dtype, micro_batch.position_ids.dtype} == {np.dtype(np.int32)}
    assert {micro_batch.old_logprobs.dtype, micro_batch.advantages.dtype, micro_batch.scales.dtype} == {
        np.dtype(np.float32)
    }


def test_a_dummy_counts_for_nothing():
    assert DUMMY.is_dummy
    assert DUMMY.num_tokens == 2
    assert not DUMMY.advantages.any()
    assert not DUMMY.scales.any()
    assert not DUMMY.entropy_scales.any()
    assert not DUMMY.kl_scales.any()
    assert np.isfinite(DUMMY.old_logprobs).all()


def test_rounds_leave_when_they_are_full_and_the_rest_at_the_end():
    packer = Packer(num_ranks=2, max_tokens_per_micro_batch=10, dummy=DUMMY)
    packer.add([weighed("a", 1, 5), weighed("b", 1, 5)])
    assert list(packer.full_rounds()) == []
    packer.add([weighed("c", 1, 3), weighed("d", 1, 7)])
    # 24 tokens wait, 20 make a round: 8 | 6 + 4, and 6 stay.
    assert sizes(packer.full_rounds()) == [[8, 10]]
    assert sizes(packer.last_rounds()) == [[6, 0]]


def test_an_update_without_samples_is_one_round_of_dummies():
    packer = Packer(num_ranks=3, max_tokens_per_micro_batch=10, dummy=DUMMY)
    assert sizes(packer.last_rounds()) == [[0, 0, 0]]
    packer.add([weighed("a", 5, 5) for _ in range(3)])
    assert sizes(packer.full_rounds()) == [[10, 10, 10]]
    assert list(packer.last_rounds()) == []  # the round before was this update's
    assert sizes(packer.last_rounds()) == [[0, 0, 0]]


def test_a_sample_that_fits_no_micro_batch_is_refused():
    packer = Packer(num_ranks=1, max_tokens_per_micro_batch=10, dummy=DUMMY)
    with pytest.raises(ValueError, match=r"sample of 11 tokens \(long\) in micro-batches of 10"):
        packer.add([weighed("long", 1, 10)])
