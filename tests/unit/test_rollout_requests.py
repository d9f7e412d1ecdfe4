"""Seeds, ids and the order of requests."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpt_ray.rollout.requests import request_for, sampling_seed, unique_ids
from hpt_ray.rollout.router import longest_first


def test_a_seed_depends_on_everything_it_should_and_nothing_else() -> None:
    base = sampling_seed(0, 1, "set/0", 0)
    assert base == sampling_seed(0, 1, "set/0", 0)
    others = [(1, 1, "set/0", 0), (0, 2, "set/0", 0), (0, 1, "set/1", 0), (0, 1, "set/0", 1)]
    assert base not in {sampling_seed(*other) for other in others}


def test_seeds_fit_and_rarely_meet() -> None:
    seeds = [sampling_seed(0, step, f"q{q}", s) for step in range(10) for q in range(100) for s in range(8)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) >= len(seeds) - 1  # 8,000 draws from 2³¹: a rendezvous is a chance of 1.5 %


def test_a_prompt_twice_in_a_batch_gets_two_ids() -> None:
    assert unique_ids(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


@given(expected=st.lists(st.floats(1, 1e4), max_size=40))
def test_what_takes_longest_comes_first_and_nothing_is_lost(expected: list[float]) -> None:
    requests = [
        request_for(f"q{i}", np.zeros(3, np.int32), num_samples=8, run_seed=0, step=0, expected_tokens=tokens)
        for i, tokens in enumerate(expected)
    ]
    ordered = longest_first(requests)
    assert sorted(r.prompt_id for r in ordered) == sorted(r.prompt_id for r in requests)
    assert [r.expected_tokens for r in ordered] == sorted(expected, reverse=True)


def test_of_equally_long_answers_those_to_longer_prompts_come_first() -> None:
    requests = [
        request_for(f"q{n}", np.zeros(n, np.int32), num_samples=1, run_seed=0, step=0) for n in (2, 9, 5)
    ]
    assert [r.prompt_id for r in longest_first(requests)] == ["q9", "q5", "q2"]
