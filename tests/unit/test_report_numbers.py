"""The arithmetic of the report: spreads, bands, smoothing, alignment of seeds, pass@k, solve-rate maps."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from report_material import evaluate, make_run
from scipy import stats

from hpt_ray.evaluation.statistics import band_of, rolling_mean, smoothing_window, spread_of, welch_difference
from hpt_ray.tools.report.attempts import GAIN, attempt_map, blocks, gain_map, moves
from hpt_ray.tools.report.comparison import final_scores
from hpt_ray.tools.report.curves import aligned, curves_of, mean_over_sets, pass_curve
from hpt_ray.tools.report.load import Attempt, Series, load_run
from hpt_ray.tools.report.methods import group_runs
from hpt_ray.tools.report.style import move_apart, short


def attempt(step: int, prompt: str, solved: int, n: int = 4) -> Attempt:
    weights = (1.0, 0.0) if solved else (0.0, 1.0)
    return Attempt(step, prompt, solved, n, "", *weights)


def test_spread_over_seeds_has_students_interval() -> None:
    values = [0.4, 0.5, 0.9]
    spread = spread_of(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (spread.mean, spread.std) == (pytest.approx(0.6), pytest.approx(np.std(values, ddof=1)))
    assert spread.ci95 == pytest.approx((high - low) / 2)
    assert spread.text() == "60.0 ± 26.5"
    assert spread_of([0.5]).text() == "50.0"
    with pytest.raises(ValueError, match="no values"):
        spread_of([])


def test_bands_leave_out_a_seed_that_has_no_value_there() -> None:
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan], [5.0, 4.0, 7.0]])
    low, high = band_of(values, "std")
    assert (high - low) / 2 == pytest.approx([2.0, 2.0**0.5, 0.0])
    low, high = band_of(values, "ci95")
    assert (high - low)[0] / 2 == pytest.approx(spread_of([1.0, 3.0, 5.0]).ci95)


def test_a_rolling_mean_keeps_length_and_constants() -> None:
    assert rolling_mean(np.array([0.0, 3.0, 6.0]), 3).tolist() == [1.5, 3.0, 4.5]
    assert rolling_mean(np.full(50, 0.3), 5) == pytest.approx(np.full(50, 0.3))
    assert smoothing_window(29) == 1
    assert all(smoothing_window(n) % 2 == 1 for n in range(1, 3000, 7))


def test_seeds_are_averaged_only_as_far_as_all_of_them_went() -> None:
    long, short_one = (
        Series(np.arange(1, 6), np.arange(1.0, 6.0)),
        Series(np.array([1, 3]), np.array([3.0, 5.0])),
    )
    steps, values = aligned([long, short_one])
    assert steps.tolist() == [1, 2, 3]
    assert values[0].tolist() == [1, 2, 3]
    assert np.isnan(values[1, 1])


def test_the_longer_seed_goes_on_as_a_line_of_its_own(tmp_path: Path) -> None:
    lengths = {0: 8, 1: 4}  # of one configuration: the second has not come further
    runs = [
        load_run(make_run(tmp_path, "run.steps=8", steps=steps, seed=seed, done=False))
        for seed, steps in lengths.items()
    ]
    (method,) = group_runs(runs)
    (curve,) = curves_of([method], "time/step_s")
    assert curve.x.tolist() == [1, 2, 3, 4]
    assert [x.tolist() for x, _ in curve.tails] == [[4, 5, 6, 7, 8]]


def test_a_metric_that_one_seed_lacks_is_not_the_methods(tmp_path: Path) -> None:
    runs = [
        load_run(make_run(tmp_path, seed=0)),
        load_run(make_run(tmp_path, seed=1, extra={"policy/kl_ref": 0.1})),
    ]
    assert curves_of(group_runs(runs), "policy/kl_ref") == []


def test_final_scores_are_the_last_and_not_the_best(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path, seed=seed)) for seed in (0, 1)]
    (method,) = group_runs(runs)
    assert final_scores(method) == {"easy": [1.0, 1.0], "hard": [0.5, 0.51]}
    mean = mean_over_sets(runs[1])
    assert mean.steps.tolist() == [0, 2, 4, 6]
    assert mean.values[-1] == pytest.approx(0.755)


def test_a_difference_is_welchs() -> None:
    ours, theirs = [0.9, 0.8, 0.85], [0.5, 0.7, 0.6, 0.65]
    found = welch_difference(ours, theirs)
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.p_t == pytest.approx(test.pvalue)
    assert found.mean - found.ci95 == pytest.approx(test.confidence_interval().low)
    assert welch_difference([0.9], theirs).p_t is None
    assert welch_difference([1.0, 1.0], [0.0, 0.0]).ci95 is None


def test_pass_at_k_is_the_chance_over_all_subsets(tmp_path: Path) -> None:
    evaluate(tmp_path / "evaluation", [0, 1, 3, 4], n=4)
    (tmp_path / "config.yaml").write_text("run: {seed: 1}\n")
    ks, values, half = pass_curve(load_run(tmp_path).results["mini-chain"])
    assert ks.tolist() == [1, 2, 4]
    for k, value in zip(ks, values, strict=True):
        chances = [
            np.mean([any(i < c for i in subset) for subset in combinations(range(4), int(k))])
            for c in (0, 1, 3, 4)
        ]
        assert value == pytest.approx(np.mean(chances))
    assert (half > 0).all()


def test_prompts_are_sorted_by_when_they_were_first_solved() -> None:
    attempts = [attempt(1, "never", 0), attempt(1, "late", 0), attempt(1, "early", 1), attempt(1, "best", 4)]
    attempts += [attempt(2, "late", 4), attempt(2, "never", 0), attempt(2, "early", 0)]
    map_ = attempt_map(attempts)
    assert map_.prompt_ids == ["best", "early", "late", "never"]
    np.testing.assert_array_equal(map_.solve_rate, [[1, np.nan], [0.25, 0], [0, 1], [0, 0]])
    assert moves(attempts).tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]  # "best" was visited once


def test_gains_are_of_graded_attempts_in_their_order() -> None:
    ours = [attempt(1, "worse", 0), attempt(1, "better", 2), attempt(1, "ours alone", 4)]
    ours += [attempt(2, "worse", 2), attempt(2, "better", 4)]
    theirs = [
        Attempt(1, name, 0, 0, "demonstrations_always", 0.0, 1.0) for name in ("better", "worse")
    ]  # SFT
    theirs += [attempt(2, "better", 2), attempt(2, "worse", 4), attempt(3, "better", 0)]
    gains = gain_map(ours, theirs)
    assert gains.prompt_ids == ["better", "worse"]
    np.testing.assert_array_equal(gains.solve_rate, [[0, 1], [-1, np.nan]])
    assert not gain_map(ours, []).has_solve_rates
    lost, equal, gained = GAIN(np.array([-1.0, 0.0, 1.0]))
    assert lost[0] > lost[2]  # reddish
    assert gained[2] > gained[0]  # blueish
    assert min(equal) > 0.9


def test_without_rollouts_there_are_no_solve_rates() -> None:
    map_ = attempt_map([Attempt(1, "q", 0, 0, "demonstrations_always", 0.0, 1.0)])
    assert not map_.has_solve_rates
    assert not attempt_map([]).has_solve_rates


def test_blocks_average_neighbours_and_pass_over_what_is_not_there() -> None:
    values = np.array([[1.0, np.nan], [0.0, np.nan], [0.5, 1.0]])
    np.testing.assert_array_equal(blocks(values, 2), [[0.5, np.nan], [0.5, 1.0]])


def test_labels_are_moved_apart_and_no_further() -> None:
    assert move_apart(np.array([0.5, 0.5]), 0.1, 1.0) == pytest.approx([0.45, 0.55])
    assert move_apart(np.array([0.1, 0.9]), 0.1, 1.0) == pytest.approx([0.1, 0.9])
    rng = np.random.default_rng(0)
    for _ in range(50):
        moved = move_apart(np.sort(rng.uniform(0, 1, 8)), 0.08, 1.05)
        assert (np.diff(moved) >= 0.08 - 1e-9).all()
        assert moved[-1] <= 1.05 + 1e-9


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5e-7, "5e−07"), (-0.25, "−0.25"), (15700, "15.7k"), (1600, "1,600"), (2e9, "2G")],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert short(value) == text
