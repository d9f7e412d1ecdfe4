"""Seeds, ids and the dealing of requests to workers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpt_ray.rollout.pool import deal
from hpt_ray.rollout.requests import request_for, sampling_seed, unique_ids


def test_a_seed_depends_on_everything_it_should_and_nothing_else() -> None:
    base = sampling_seed(0, 1, "set/0", 0)
    assert base == sampling_seed(0, 1, "set/0", 0)
    others = [(1, 1, "set/0", 0), (0, 2, "set/0", 0), (0, 1, "set/1", 0), (0, 1, "set/0", 1)]
    assert base not in {sampling_seed(*other) for other in others}


def test_seeds_fit_and_rarely_meet() -> None:
    seeds = [sampling_seed(0, step, f"q{q}", s) for step in range(10) for q in range(100) for s in range(8)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) >= len(seeds) - 1  # 8,000 draws from 2³¹: a meeting is a chance of 1.5 %


def test_a_question_twice_in_a_batch_gets_two_ids() -> None:
    assert unique_ids(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    num_workers=st.integers(1, 5),
)
def test_every_request_goes_to_one_worker_and_sequences_are_even(
    lengths: list[int], num_workers: int
) -> None:
    requests = [
        request_for(f"q{i}", np.zeros(n, np.int32), num_samples=8, run_seed=0, step=0)
        for i, n in enumerate(lengths)
    ]
    shares = deal(requests, num_workers)
    assert sorted(r.question_id for share in shares for r in share) == sorted(r.question_id for r in requests)
    counts = [sum(len(r.samples) for r in share) for share in shares]
    assert max(counts) - min(counts) <= 8
