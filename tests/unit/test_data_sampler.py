"""The order of prompts: seeded, complete per epoch, and the same after a resume at any point."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt_ray.data.sampler import Sampler
from hpt_ray.errors import UserError

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32)
batches = st.lists(st.integers(0, 50), max_size=8)


@given(sizes, seeds, st.booleans(), batches, batches)
def test_resume_at_any_point_gives_the_same_remaining_order(size, seed, shuffle, before, after):
    sampler = Sampler(size, seed=seed, shuffle=shuffle)
    for count in before:
        sampler.next_batch(count)
    resumed = Sampler(size, seed=seed, shuffle=shuffle)
    resumed.load_state(json.loads(json.dumps(sampler.state())))
    assert [resumed.next_batch(count) for count in after] == [sampler.next_batch(count) for count in after]
    assert resumed.state() == sampler.state()


@given(sizes, seeds, st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_every_epoch_holds_every_prompt_once_however_it_is_cut(size, seed, counts):
    sampler = Sampler(size, seed=seed)
    drawn = [index for count in counts for index in sampler.next_batch(count)]
    assert len(drawn) == sum(counts)
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))
    assert (sampler.epoch, sampler.position) == divmod(len(drawn), size)
    assert drawn == Sampler(size, seed=seed).next_batch(len(drawn))


def test_order_depends_on_seed_and_epoch():
    sampler = Sampler(50, seed=1)
    first, second = sampler.next_batch(50), sampler.next_batch(50)
    assert first != second
    assert first != Sampler(50, seed=2).next_batch(50)
    assert first != list(range(50))


def test_order_is_the_recorded_one():
    assert Sampler(10, seed=0).next_batch(20) == [
        *(4, 6, 2, 7, 3, 5, 9, 0, 8, 1),
        *(9, 1, 3, 8, 7, 6, 0, 4, 2, 5),
    ]


def test_without_shuffling_the_files_order_is_kept():
    assert Sampler(3, seed=5, shuffle=False).next_batch(7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("other", [(11, 0, True), (10, 1, True), (10, 0, False)])
def test_another_order_cannot_be_continued(other):
    size, seed, shuffle = other
    state = Sampler(10, seed=0).state()
    with pytest.raises(UserError, match="cannot be continued"):
        Sampler(size, seed=seed, shuffle=shuffle).load_state(state)


def test_nothing_to_draw_from():
    with pytest.raises(UserError, match="no prompt"):
        Sampler(0, seed=0)
