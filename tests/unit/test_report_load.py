"""What the report reads from a run folder, and how runs become methods."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from report_material import PER_STEP, N, evaluate, make_run

from hpt_ray.errors import UserError
from hpt_ray.tools.report.load import Attempt, flat_keys, load_run
from hpt_ray.tools.report.methods import differing_keys, group_runs, shown


def test_a_run_is_read_as_it_was_written_and_left_as_it_was(tmp_path: Path) -> None:
    first, second = make_run(tmp_path), make_run(tmp_path)
    run = load_run(first)
    assert (run.state, run.num_steps, run.seed, run.wall_s) == ("done", 6, 0, 61.0)
    assert run.config["algorithm.name"] == "hpt"
    grad_norm = run.series("optim/grad_norm")
    assert grad_norm.steps.tolist() == [1, 3, 4, 5, 6]  # NaN at step 2, null at step 0
    assert grad_norm.values[0] == 1.0
    assert run.evaluations()["easy"].steps.tolist() == [0, 2, 4, 6]
    assert len(run.series("nothing/like_it")) == 0
    assert len(run.attempts) == 6 * PER_STEP
    assert run.tokens_sampled == 6 * PER_STEP * N * 3  # three tokens each
    assert run.tokens_trained == 6 * 100 * 0.5
    assert (tmp_path / "latest").resolve() == second


def test_a_run_under_way_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    root = make_run(tmp_path, done=False)
    for name in ("metrics.jsonl", "prompt_history.jsonl"):
        with (root / name).open("a") as file:
            file.write('{"step": 7, "rew')
    run = load_run(root)
    assert (run.state, run.num_steps) == ("not finished", 6)
    assert run.wall_s == pytest.approx(6 * 2.0 + 4 * 0.5)


def test_a_run_without_a_step_has_nothing_and_says_so(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, steps=0, done=False))
    assert (run.lines, run.num_steps, run.names, run.wall_s) == ([], 0, [], 0.0)


def test_what_is_no_run_or_cannot_be_read_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        load_run(tmp_path)
    root = make_run(tmp_path)
    (root / "summary.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_run(root)


def test_the_solve_rate_is_over_what_was_graded() -> None:
    assert Attempt(1, "q", 1, 8, "unsolved", 0.0, 1.0, aborted=4).solve_rate == 0.25
    assert np.isnan(Attempt(1, "q", 0, 8, "unsolved", 0.0, 1.0, aborted=8).solve_rate)
    branches = [Attempt(1, "q", 0, 8, "", a, b).branch for a, b in ((1, 0), (0, 1), (0.5, 0.5), (0, 0))]
    assert branches == ["rollouts", "demonstration", "both", "nothing"]


def test_evaluations_are_those_in_the_folder_and_those_given(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    evaluate(root / "evaluation", [1, 2])
    evaluate(root / "evaluations" / "test", [3], benchmark="aime")
    elsewhere = evaluate(tmp_path / "elsewhere", [4, 5], benchmark="amc")
    results = load_run(root, [elsewhere]).results
    assert {name: [row.correct for row in rows] for name, rows in results.items()} == {
        "mini-chain": [1, 2],
        "aime": [3],
        "amc": [4, 5],
    }


def test_seeds_of_one_configuration_are_one_method(tmp_path: Path) -> None:
    runs = [
        load_run(make_run(tmp_path, "observe.samples_every=7", seed=0)),
        load_run(make_run(tmp_path, "algorithm.name=grpo", seed=0)),
        load_run(make_run(tmp_path, "run.name=other", "evaluation.every=2", seed=1)),
    ]
    hpt, grpo = group_runs(runs)
    assert (hpt.label, hpt.seeds, grpo.label, grpo.seeds) == ("hpt", [0, 1], "grpo", [0])
    assert "run.seed" in differing_keys(runs)
    # The colour of an algorithm is the same on every page, whatever else is on it.
    assert group_runs([runs[1]])[0].color == grpo.color != hpt.color


def test_methods_of_one_algorithm_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [
        load_run(make_run(tmp_path, f"selection.gamma={gamma}", "algorithm.rollout_coef=4"))
        for gamma in (0, 0.125, -1)
    ]
    methods = group_runs(runs)
    assert [method.label for method in methods] == ["hpt, gamma 0.0", "hpt, gamma 0.125", "hpt, gamma -1.0"]
    assert len({(method.color, method.dash) for method in methods}) == 3


def test_a_run_in_phases_is_named_by_their_algorithms(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    config = yaml.safe_load((root / "config.yaml").read_text())
    config["phases"] = [
        {"steps": 3, "algorithm": {"name": "sft"}},
        {"steps": 3, "algorithm": {"name": "grpo"}},
    ]
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    runs = [load_run(root), load_run(make_run(tmp_path))]
    assert [method.label for method in group_runs(runs)] == ["sft→grpo", "hpt"]


def test_a_key_that_came_up_later_is_no_difference(tmp_path: Path) -> None:
    roots = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1)]
    config = yaml.safe_load((roots[0] / "config.yaml").read_text())
    del config["algorithm"]["mode"], config["rollout"]["engine"], config["learner"]["betas"]
    (roots[0] / "config.yaml").write_text(yaml.safe_dump(config))
    runs = [load_run(root) for root in roots]
    assert len(group_runs(runs)) == 1
    assert differing_keys(runs) == ["run.seed"]


def test_given_labels_decide(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path, seed=seed)) for seed in (0, 1)]
    labels = {run.root: f"seed {run.seed}" for run in runs}
    assert [method.label for method in group_runs(runs, labels)] == ["seed 0", "seed 1"]


def test_more_methods_than_colours_stay_apart(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path, f"selection.gamma={i / 16}")) for i in range(16)]
    methods = group_runs(runs)
    assert len({(method.color, method.dash) for method in methods}) == 16
    assert len({method.label for method in methods}) == 16


def test_configurations_are_shown_as_written() -> None:
    flat = flat_keys(yaml.safe_load("a: {b: 1, c: {}}\nd: [0.9, x]\ne: null\nf: text\n"))
    assert flat == {"a.b": 1, "a.c": None, "d": [0.9, "x"], "e": None, "f": "text"}
    assert [shown(value) for value in flat.values()] == ["1", "–", '[0.9, "x"]', "–", "text"]
