"""Whatever comes in, in whatever portions: every row leaves once, in packs that fit, round by round."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpt_ray.learner.packing import Packer, WeighedRow, dummy_pack
from hpt_ray.types import Pack, Row

BUDGET = 16
QUESTIONS = st.lists(
    st.lists(st.tuples(st.integers(1, BUDGET // 2), st.integers(1, BUDGET // 2)), max_size=6), max_size=8
)


def weighed(number: int, prompt: int, response: int) -> WeighedRow:
    """A row that can be told apart by its group, its tokens and its scale."""
    tokens = np.full(prompt + response, number, np.int32)
    row = Row(str(number), tokens, prompt, np.full(response, -number, np.float32), False, 1.0, number)
    return WeighedRow(row, np.full((1, response), number), np.array([number]))


def rows_of(pack: Pack) -> list[tuple[int, int, int]]:
    """(number, prompt, response) of every row, checked against all its arrays."""
    found = []
    token_ends, response_ends = np.cumsum(pack.row_lengths), np.cumsum(pack.response_lengths)
    for i, number in enumerate(pack.group_ids):
        length, response = int(pack.row_lengths[i]), int(pack.response_lengths[i])
        tokens = slice(token_ends[i] - length, token_ends[i])
        responses = slice(response_ends[i] - response, response_ends[i])
        assert (pack.token_ids[tokens] == number).all()
        assert (pack.position_ids[tokens] == np.arange(length)).all()
        assert (pack.logp_old[responses] == -number).all()
        assert (pack.advantages[0, responses] == number).all()
        assert pack.scales[0, i] == number
        found.append((int(number), length - response, response))
    assert token_ends[-1] == len(pack.token_ids)
    assert response_ends[-1] == len(pack.logp_old) == pack.advantages.shape[1]
    return found


@given(questions=QUESTIONS, num_ranks=st.integers(1, 4), num_updates=st.integers(1, 2))
def test_every_row_leaves_once_in_packs_that_fit(questions, num_ranks, num_updates):
    packer = Packer(num_ranks=num_ranks, tokens_per_microbatch=BUDGET, dummy=dummy_pack(1))
    for _ in range(num_updates):
        expected: list[tuple[int, int, int]] = []
        rounds: list[list[Pack]] = []
        for question in questions:
            rows = [(len(expected) + i + 1, *shape) for i, shape in enumerate(question)]
            expected += rows
            packer.add([weighed(*row) for row in rows])
            rounds += packer.full_rounds()
            waiting = sum(prompt + response for _, prompt, response in expected) - tokens_of(rounds)
            assert waiting < num_ranks * BUDGET
        rounds += packer.last_rounds()
        assert rounds
        assert all(len(packs) == num_ranks for packs in rounds)
        assert all(pack.num_tokens <= BUDGET for packs in rounds for pack in packs)
        got = [row for packs in rounds for pack in packs if not pack.is_dummy for row in rows_of(pack)]
        assert Counter(got) == Counter(expected)
        if expected:
            assert all(any(not pack.is_dummy for pack in packs) for packs in rounds)


def tokens_of(rounds: list[list[Pack]]) -> int:
    return sum(pack.num_tokens for packs in rounds for pack in packs if not pack.is_dummy)
