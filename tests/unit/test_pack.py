"""Rows to packs, packs to rounds: the layout by hand."""

import numpy as np
import pytest

from hpt_ray.learner.packing import Packer, WeighedRow, dummy_pack, make_pack
from hpt_ray.types import Row

DUMMY = dummy_pack(2)


def weighed(name: str, prompt: int, response: int, *, is_demo: bool = False, group: int = 0) -> WeighedRow:
    """A row of `prompt + response` tokens 0, 1, … with K = 2 terms."""
    logp_old = np.full(response, np.nan if is_demo else -1.0, np.float32)
    row = Row(
        name, np.arange(prompt + response, dtype=np.int32), prompt, logp_old, is_demo, 1.0, group, weight=1.0
    )
    return WeighedRow(row, np.array([[0.5], [0.0]]), np.array([0.25, 0.0]), 0.125, 0.0625)


def sizes(rounds: list) -> list[list[int]]:
    """Tokens of every pack, 0 for dummies."""
    return [[0 if pack.is_dummy else pack.num_tokens for pack in packs] for packs in rounds]


def test_layout():
    per_token = WeighedRow(weighed("a", 2, 3).row, np.array([[1, 2, 3], [4, 5, 6]]), np.array([7, 8]))
    pack = make_pack([per_token, weighed("b", 1, 2, is_demo=True, group=5)])
    assert pack.token_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert pack.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert pack.row_lengths.tolist() == [5, 3]
    assert pack.response_lengths.tolist() == [3, 2]
    assert pack.logp_old[:3].tolist() == [-1, -1, -1]
    assert np.isnan(pack.logp_old[3:]).all()
    assert pack.advantages.tolist() == [[1, 2, 3, 0.5, 0.5], [4, 5, 6, 0, 0]]
    assert pack.scales.tolist() == [[7, 0.25], [8, 0]]
    assert pack.entropy_scales.tolist() == [0, 0.125]
    assert pack.kl_scales.tolist() == [0, 0.0625]
    assert pack.group_ids.tolist() == [0, 5]
    assert pack.is_demo.tolist() == [False, True]
    assert not pack.is_dummy
    assert {pack.token_ids.dtype, pack.position_ids.dtype} == {np.dtype(np.int32)}
    assert {pack.logp_old.dtype, pack.advantages.dtype, pack.scales.dtype} == {np.dtype(np.float32)}


def test_a_dummy_counts_for_nothing():
    assert DUMMY.is_dummy
    assert DUMMY.num_tokens == 2
    assert not DUMMY.advantages.any()
    assert not DUMMY.scales.any()
    assert not DUMMY.entropy_scales.any()
    assert not DUMMY.kl_scales.any()
    assert np.isfinite(DUMMY.logp_old).all()


def test_rounds_leave_when_they_are_full_and_the_rest_at_the_end():
    packer = Packer(num_ranks=2, tokens_per_microbatch=10, dummy=DUMMY)
    packer.add([weighed("a", 1, 5), weighed("b", 1, 5)])
    assert list(packer.full_rounds()) == []
    packer.add([weighed("c", 1, 3), weighed("d", 1, 7)])
    # 24 tokens wait, 20 make a round: 8 | 6 + 4, and 6 stay.
    assert sizes(packer.full_rounds()) == [[8, 10]]
    assert sizes(packer.last_rounds()) == [[6, 0]]


def test_an_update_without_rows_is_one_round_of_dummies():
    packer = Packer(num_ranks=3, tokens_per_microbatch=10, dummy=DUMMY)
    assert sizes(packer.last_rounds()) == [[0, 0, 0]]
    packer.add([weighed("a", 5, 5) for _ in range(3)])
    assert sizes(packer.full_rounds()) == [[10, 10, 10]]
    assert list(packer.last_rounds()) == []  # the round before was this update's
    assert sizes(packer.last_rounds()) == [[0, 0, 0]]


def test_a_row_that_fits_no_pack_is_refused():
    packer = Packer(num_ranks=1, tokens_per_microbatch=10, dummy=DUMMY)
    with pytest.raises(ValueError, match=r"row of 11 tokens \(long\) in packs of 10"):
        packer.add([weighed("long", 1, 10)])
