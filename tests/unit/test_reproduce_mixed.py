"""The mixed model on data of known truth: coverage, false positives, and a permutation test beside it."""

import numpy as np
import pytest
from scipy import stats

from hpt_ray.evaluation.mixed import Unit, estimate, paired
from hpt_ray.evaluation.statistics import holm

NUM = 1000


def draw(
    rng: np.random.Generator,
    bases: int,
    seeds: int,
    prompts: tuple[int, ...],
    sd: tuple[float, float, float, float, float],
    mean: float = 0.0,
) -> dict[Unit, list[np.ndarray]]:
    """`sd`: of bases, seeds, prompts, base × prompt, rest."""
    base, seed, prompt, both, rest = sd
    of_base, of_prompt = rng.normal(0, base, bases), [rng.normal(0, prompt, q) for q in prompts]
    of_both = [rng.normal(0, both, (bases, q)) for q in prompts]
    return {
        (f"b{b}", s): [
            mean + of_base[b] + shift + of_prompt[k] + of_both[k][b] + rng.normal(0, rest, q)
            for k, q in enumerate(prompts)
        ]
        for b in range(bases)
        for s in range(seeds)
        for shift in [rng.normal(0, seed)]
    }


@pytest.mark.parametrize(
    ("bases", "seeds", "sd"),
    [
        (5, 3, (0.09, 0.02, 0.3, 0.1, 0.3)),  # bases scatter most, as in the small task
        (5, 3, (0.02, 0.02, 0.4, 0.1, 0.3)),  # as much as the prompts
        (1, 5, (0.0, 0.03, 0.4, 0.0, 0.3)),  # seeds of one base
    ],
)
def test_95_percent_intervals_hold_95_percent(bases: int, seeds: int, sd: tuple[float, ...]) -> None:
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(NUM):
        found = estimate(draw(rng, bases, seeds, (50, 100), sd, 0.6))  # type: ignore[arg-type]
        held += abs(found.mean - 0.6) < found.ci95  # type: ignore[operator]
    assert 0.93 <= held / NUM <= 0.97


def test_the_seeds_alone_would_claim_too_much() -> None:
    """What the prompts add: without them the interval misses far more than one time in twenty."""
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(300):
        runs = draw(rng, 1, 5, (100,), (0.0, 0.01, 0.4, 0.0, 0.3))
        alone = estimate({unit: [values[0].mean(keepdims=True)] for unit, values in runs.items()})
        held += abs(alone.mean) < alone.ci95  # type: ignore[operator]
    assert held / 300 < 0.75


def test_p_is_that_of_flipping_whole_bases_where_these_alone_scatter() -> None:
    rng = np.random.default_rng(9)
    found = [estimate(draw(rng, 10, 2, (40,), (0.1, 0.05, 0.0, 0.1, 0.2))) for _ in range(300)]
    ps = np.array([(d.p_t, d.p_permutation) for d in found], float)
    assert np.abs(ps[:, 0] - ps[:, 1]).mean() < 0.03
    assert np.all(np.abs((ps < 0.05).mean(axis=0) - 0.05) < 0.03)


def test_holm_holds_the_rate_of_any_false_claim() -> None:
    """Five methods that are as good as the reference, which all differences share."""
    rng = np.random.default_rng(10)
    sd, wrong = (0.05, 0.02, 0.2, 0.1, 0.3), [0, 0]
    for _ in range(400):
        ours, *others = (draw(rng, 5, 2, (60,), sd) for _ in range(6))
        ps = [paired(ours, theirs).p_t for theirs in others]  # type: ignore[union-attr]
        wrong[0] += min(ps) < 0.05  # type: ignore[type-var, operator]
        wrong[1] += min(holm(ps)) < 0.05  # type: ignore[type-var, operator]
    assert wrong[1] / 400 <= 0.072  # 0.05 and two standard errors
    assert wrong[0] / 400 > 0.1  # uncorrected


def test_scores_without_prompts_are_the_paired_t_over_seeds() -> None:
    a, b = {1: 0.9, 2: 0.7, 3: 0.8}, {1: 0.5, 2: 0.6, 3: 0.4}
    ours, theirs = ({("t", s): [np.array([x])] for s, x in side.items()} for side in (a, b))
    found, expected = paired(ours, theirs), stats.ttest_rel([*a.values()], [*b.values()])
    assert found is not None
    assert (found.over, found.n) == ("seeds", 3)
    assert (found.mean, found.ci95, found.p_t) == pytest.approx(
        (0.3, expected.confidence_interval().high - 0.3, expected.pvalue)
    )


def test_the_variance_is_that_of_the_mean_squares() -> None:
    table = np.array([[1.0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]])
    found = estimate({("t", s): [row] for s, row in enumerate(table)})
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    ms = 4 * table.mean(1).var(ddof=1), 3 * table.mean(0).var(ddof=1), (rest**2).sum() / 6
    variance = (ms[0] + ms[1] - ms[2]) / 12
    assert (found.mean, found.over) == (pytest.approx(table.mean()), "seeds and prompts")
    df = (ms[0] + ms[1] - ms[2]) ** 2 / (ms[0] ** 2 / 2 + ms[1] ** 2 / 3 + ms[2] ** 2 / 6)
    assert found.ci95 == pytest.approx(stats.t.ppf(0.975, max(df, 2)) * variance**0.5)


def test_one_run_has_no_interval_and_equal_ones_no_p() -> None:
    one = estimate({("t", 1): [np.array([1.0, 0.0])]})
    assert (one.mean, one.ci95, one.p_t) == (0.5, None, None)
    same = [np.array([1.0, 1.0])]
    equal = estimate({("t", 1): same, ("t", 2): same})
    assert (equal.mean, equal.ci95, equal.p_t) == (1.0, 0.0, None)
    assert paired({("t", 1): same}, {("u", 1): same}) is None
