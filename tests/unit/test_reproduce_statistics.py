"""Differences over seeds against values worked out otherwise."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hpt_ray.evaluation.statistics import Asked, difference, holm, sign_flip_p, spread_of

A = {1: 0.91, 2: 0.88, 3: 0.95, 4: 0.90, 5: 0.93}
B = {1: 0.85, 2: 0.86, 3: 0.90, 4: 0.91, 5: 0.84}


def test_paired_t_is_that_of_scipy() -> None:
    found = difference(A, B)
    expected = stats.ttest_rel(list(A.values()), list(B.values()))
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found.p_t == pytest.approx(expected.pvalue)
    assert found.ci95 == pytest.approx((interval.high - interval.low) / 2)
    assert found.differs is bool(expected.pvalue < 0.05)


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
    assert (one.ci95, one.p_t, one.differs) == (None, None, False)
    equal = difference({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6})
    assert equal is not None
    assert (equal.mean, equal.p_t, equal.differs) == (0, None, False)


def test_holm_corrects_step_by_step_and_keeps_gaps() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def crossed(rng: np.random.Generator, seeds: int, prompts: int) -> np.ndarray:
    """Scores [seeds, prompts] around 0.7: every seed, every prompt and every response is drawn anew."""
    of_seeds, of_prompts = rng.normal(0, 0.02, (seeds, 1)), rng.normal(0, 0.3, (1, prompts))
    return 0.7 + of_seeds + of_prompts + rng.normal(0, 0.3, (seeds, prompts))


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_over_prompts_too_holds_for_other_prompts(seeds: int) -> None:
    rng, covered, alone, times = np.random.default_rng(0), 0, 0, 2000
    for _ in range(times):
        values = crossed(rng, seeds, 100)
        both, over_seeds = (spread_of(values.mean(1), asked) for asked in (Asked.of(values), None))
        assert both.ci95 is not None
        covered += abs(both.mean - 0.7) < both.ci95
        assert over_seeds.ci95 is not None
        alone += abs(over_seeds.mean - 0.7) < over_seeds.ci95
    assert 0.94 < covered / times < 0.975
    assert alone / times < 0.9, "the seeds alone know nothing of other prompts"


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_methods_differ_as_often_as_is_said(seeds: int) -> None:
    rng, times, rejected = np.random.default_rng(1), 2000, 0
    for _ in range(times):
        a, b = (crossed(rng, seeds, 100) for _ in range(2))  # other prompts suit the other method
        means = [dict(enumerate(side.mean(1))) for side in (a, b)]
        found = difference(*means, Asked.of(a - b))
        assert found is not None
        assert found.p_t is not None
        rejected += found.p_t < 0.05
        assert found.differs is (found.p_t < 0.05)
    assert 0.02 < rejected / times < 0.06


def test_the_part_of_prompts_is_that_of_an_analysis_of_variance() -> None:
    values = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    n, q = values.shape
    of_prompts, of_seeds, mean = values.mean(0), values.mean(1), values.mean()
    ms_prompt = n * np.square(of_prompts - mean).sum() / (q - 1)
    rest = [(values[i, j] - of_seeds[i] - of_prompts[j] + mean) ** 2 for i in range(n) for j in range(q)]
    ms_rest = sum(rest) / ((n - 1) * (q - 1))
    found = Asked.of(values)
    assert found is not None
    assert found.variance == pytest.approx((ms_prompt - ms_rest) / (n * q))
    assert Asked.average([found, found]).variance == pytest.approx(found.variance / 2)
    assert Asked.of(values[:, :1]) is None
