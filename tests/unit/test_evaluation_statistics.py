"""pass@k and intervals against values by hand, brute force and exact fractions."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from hpt_ray.errors import UserError
from hpt_ray.evaluation.statistics import (
    Estimate,
    bootstrap_pass_at_k,
    default_ks,
    mean_over_prompts,
    pass_at_k,
    weighted_average,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 2, 1, 1 / 2),
        (4, 2, 2, 5 / 6),  # of 6 pairs, one has no right answer
        (4, 2, 3, 1.0),
        (5, 1, 5, 1.0),  # k = n: one right answer is always among them
        (5, 0, 5, 0.0),
        (10, 3, 2, 1 - 21 / 45),
        (1, 1, 1, 1.0),
    ],
)
def test_by_hand(n, c, k, expected):
    assert pass_at_k(n, np.array([c]), k)[0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("n", range(1, 8))
def test_against_all_subsets_and_all_draws(n):
    for c in range(n + 1):
        right = [i < c for i in range(n)]
        for k in range(1, n + 1):
            subsets = [any(s) for s in itertools.combinations(right, k)]
            assert pass_at_k(n, np.array([c]), k)[0] == pytest.approx(np.mean(subsets), abs=1e-14)
            if n**k <= 4096:
                draws = [any(d) for d in itertools.product(right, repeat=k)]
                assert bootstrap_pass_at_k(n, np.array([c]), k)[0] == pytest.approx(np.mean(draws), abs=1e-14)


@pytest.mark.parametrize("n", [64, 2048, 5000])
def test_against_exact_fractions_for_many_samples(n):
    cs = np.array([0, 1, 2, 3, n // 7, n // 2, n - 2, n - 1, n])
    for k in (1, 2, 32, n // 2, n - 1, n):
        exact = [float(1 - Fraction(comb(n - c, k), comb(n, k))) for c in cs.tolist()]
        np.testing.assert_allclose(pass_at_k(n, cs, k), exact, rtol=0, atol=1e-12)


def test_pass_at_1_is_the_mean_and_values_rise_with_k():
    c = np.arange(33)
    np.testing.assert_allclose(pass_at_k(32, c, 1), c / 32, atol=1e-15)
    np.testing.assert_allclose(bootstrap_pass_at_k(32, c, 1), c / 32, atol=1e-15)
    curve = np.array([pass_at_k(32, c, k) for k in range(1, 33)])
    assert (np.diff(curve, axis=0) >= -1e-15).all()
    assert (curve >= 0).all()
    assert (curve <= 1).all()


@pytest.mark.parametrize("estimator", [pass_at_k, bootstrap_pass_at_k])
@pytest.mark.parametrize("k", [0, 9])
def test_fewer_samples_than_k_are_refused(estimator, k):
    with pytest.raises(UserError, match=rf"pass@{k} needs at least {k} samples per prompt, and there are 8"):
        estimator(8, np.array([3]), k)


def test_default_ks():
    assert [default_ks(n) for n in (1, 2, 6, 32)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8, 16, 32]]


def test_the_interval_by_hand():
    estimate = mean_over_prompts(np.array([1.0, 0.0, 1.0, 0.0]))
    assert estimate.value == 0.5
    assert estimate.half_width == pytest.approx(1.959964 * np.sqrt(1 / 3) / 2, rel=1e-6)
    assert mean_over_prompts(np.array([0.25])) == Estimate(0.25, None)


def test_the_interval_covers_what_it_says():
    random = np.random.default_rng(0)
    difficulty = random.beta(0.5, 0.8, 400_000)
    truth, covered = 0.5 / 1.3, 0
    for _ in range(1000):
        asked = random.choice(difficulty, 200)
        estimate = mean_over_prompts(random.binomial(4, asked) / 4)
        covered += abs(estimate.value - truth) <= estimate.half_width
    assert 925 <= covered <= 970


def test_averages_by_hand():
    parts = [Estimate(0.2, 0.03), Estimate(0.6, 0.04)]
    even = weighted_average(parts, [1, 1])
    assert even.value == pytest.approx(0.4)
    assert even.half_width == pytest.approx(0.025)  # √(3² + 4²) / 2 = 2.5
    by_size = weighted_average(parts, [30, 10])
    assert by_size.value == pytest.approx(0.3)
    assert by_size.half_width == pytest.approx(np.hypot(0.75 * 0.03, 0.25 * 0.04))
    assert weighted_average([Estimate(1.0, None), *parts], [1, 1, 1]).half_width is None
