"""Differences over seeds against values worked out otherwise."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hpt_ray.evaluation.mixed import paired
from hpt_ray.evaluation.statistics import Difference, holm, sign_flip_p

A = {1: 0.91, 2: 0.88, 3: 0.95, 4: 0.90, 5: 0.93}
B = {1: 0.85, 2: 0.86, 3: 0.90, 4: 0.91, 5: 0.84}


def difference(a: dict[int, float], b: dict[int, float]) -> Difference | None:
    """Of scores without their prompts, by seed."""
    ours, theirs = ({("t", seed): [np.array([x])] for seed, x in side.items()} for side in (a, b))
    return paired(ours, theirs)


def test_paired_t_is_that_of_scipy() -> None:
    found = difference(A, B)
    expected = stats.ttest_rel(list(A.values()), list(B.values()))
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found.p_t == pytest.approx(expected.pvalue)
    assert found.ci95 == pytest.approx((interval.high - interval.low) / 2)


def test_sign_flips_are_all_counted() -> None:
    deltas = np.array([0.06, 0.02, 0.05, -0.01, 0.09])
    means = [np.mean(deltas * signs) for signs in itertools.product((1, -1), repeat=5)]
    as_far = sum(abs(mean) >= deltas.mean() - 1e-12 for mean in means)
    assert sign_flip_p(deltas) == pytest.approx(as_far / 32)


def test_three_seeds_cannot_show_less_than_a_quarter() -> None:
    found = difference({1: 1.0, 2: 0.9, 3: 0.95}, {1: 0.1, 2: 0.2, 3: 0.3})
    assert found is not None
    assert found.p_permutation == pytest.approx(0.25)


def test_only_common_seeds_are_compared() -> None:
    found = difference({1: 0.5, 2: 0.7, 3: 0.0}, {2: 0.6, 1: 0.2, 9: 1.0})
    assert found is not None
    assert (found.n, found.mean) == (2, pytest.approx(0.2))


def test_too_little_says_nothing() -> None:
    assert difference({1: 0.5}, {2: 0.5}) is None
    one = difference({1: 0.5}, {1: 0.4})
    assert one is not None
    assert (one.ci95, one.p_t) == (None, None)
    equal = difference({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6})
    assert equal is not None
    assert (equal.mean, equal.p_t) == (0, None)


def test_holm_corrects_step_by_step_and_keeps_gaps() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
