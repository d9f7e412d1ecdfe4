"""A suite file becomes runs: what is merged, what is refused, what is left out."""

from pathlib import Path

import pytest

from hpt_ray.config.load import dump_config, load_config
from hpt_ray.errors import UserError
from hpt_ray.tools.suite.__main__ import main
from hpt_ray.tools.suite.matrix import matching, nested, reported_runs, sweep_runs, untuned
from hpt_ray.tools.suite.suite import Suite, load_suite

ROOT = Path(__file__).resolve().parents[2]
RECIPE = f"""
defaults: [{ROOT}/tests/cluster/tiny.yaml]
run: {{steps: 10}}
evaluation: {{every: 5, sets: {{old: "mini:validation/geo"}}}}
"""
SUITE = """
out: {out}
recipe: recipe.yaml
models:
  t: {{title: small, config: {{model: {{path: "mini:t"}}}}}}
  xs: {{title: deeper, config: {{model: {{path: "mini:xs"}}}}}}
methods:
  grpo: {{title: GRPO, config: {{algorithm: {{name: grpo}}}}}}
  hpt:
    title: HPT
    config: {{algorithm: {{name: hpt}}}}
    tries: [{{algorithm.rollout_coef: 1.0}}, {{algorithm.rollout_coef: 4.0}}]
  gamma: {{title: γ, tuned_as: hpt, models: [t], config: {{selection: {{gamma: 0.25}}}}}}
matrix: {{seeds: [1, 2]}}
sets: {{test: {{chain: "mini:test/chain"}}, in_distribution: [chain]}}
sweep:
  seeds: [9]
  sets: {{chain: "mini:validation/chain"}}
  tries: [{{learner.learning_rate: 1.0e-4}}, {{learner.learning_rate: 2.0e-4}}]
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.format(out=tmp_path / "out"), encoding="utf-8")
    return path


@pytest.fixture
def suite(suite_file: Path) -> Suite:
    return load_suite(suite_file)


def test_the_matrix_is_models_by_methods_by_seeds(suite: Suite) -> None:
    ids = [run.id for run in reported_runs(suite, untuned(suite))]
    assert ids == [
        *("t.grpo.s1", "t.grpo.s2", "t.hpt.s1", "t.hpt.s2", "t.gamma.s1", "t.gamma.s2"),
        *("xs.grpo.s1", "xs.grpo.s2", "xs.hpt.s1", "xs.hpt.s2"),
    ]


def test_a_run_has_the_recipe_and_its_own_parts(suite: Suite) -> None:
    run = next(run for run in reported_runs(suite, untuned(suite)) if run.id == "t.gamma.s2")
    config = run.config
    assert (config.run.seed, config.run.name, config.model.path) == (2, "t.gamma.s2", "mini:t")
    assert (config.selection.gamma, config.run.steps, config.prompts_per_step) == (0.25, 10, 8)
    assert config.evaluation.sets == {"chain": "mini:test/chain"}  # and none of the recipe's
    assert run.attempts == 80


def test_a_try_is_looked_at_once_and_on_validation_sets(suite: Suite) -> None:
    runs = sweep_runs(suite, [("t", "hpt"), ("t", "gamma")])
    assert [run.id for run in runs] == ["t.hpt.try1.s9", "t.hpt.try2.s9"]  # gamma takes those of hpt
    config = runs[1].config
    assert config.algorithm.rollout_coef == 4.0
    assert config.evaluation.sets == {"chain": "mini:validation/chain"}
    assert (config.evaluation.every, config.evaluation.before_training) == (0, False)


def test_an_ablation_takes_the_values_chosen_for_its_method(suite: Suite) -> None:
    chosen = {("t", "hpt"): {"algorithm.rollout_coef": 4.0}}
    runs = reported_runs(suite, chosen)
    assert {run.method for run in runs} == {"hpt", "gamma"}  # what has no values does not run
    assert all(run.config.algorithm.rollout_coef == 4.0 for run in runs)


BASES = (
    "models.t.bases={a: {model: {path: 'mini:t-s5'}}, b: {model: {path: 'mini:t-s6'}}}",
    "models.t.tuning_bases={c: {model: {path: 'mini:t-s7'}}}",
)


def test_every_seed_runs_on_every_base_and_tries_on_others(suite_file: Path) -> None:
    suite = load_suite(suite_file, BASES)
    runs = [run for run in reported_runs(suite, untuned(suite)) if run.pair == ("t", "hpt")]
    assert [run.id for run in runs] == ["t.hpt.a.s1", "t.hpt.a.s2", "t.hpt.b.s1", "t.hpt.b.s2"]
    assert [run.config.model.path for run in runs] == ["mini:t-s5"] * 2 + ["mini:t-s6"] * 2
    tries = sweep_runs(suite, [("t", "hpt"), ("xs", "hpt")])
    assert [run.id for run in tries] == [
        *("t.hpt.try1.c.s9", "t.hpt.try2.c.s9"),
        *("xs.hpt.try1.s9", "xs.hpt.try2.s9"),  # which has one base
    ]
    assert tries[0].config.model.path == "mini:t-s7"
    assert [run.id for run in matching(runs, ["t.hpt.a.*"])] == ["t.hpt.a.s1", "t.hpt.a.s2"]


def test_a_configuration_can_be_run_by_hand(suite: Suite, tmp_path: Path) -> None:
    run = reported_runs(suite, untuned(suite))[0]
    dump_config(run.config, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml", []) == run.config


def test_only_chooses_runs_by_name(suite: Suite) -> None:
    runs = reported_runs(suite, untuned(suite))
    assert [run.id for run in matching(runs, ["t.hpt.*", "xs.*.s1"])] == [
        *("t.hpt.s1", "t.hpt.s2", "xs.grpo.s1", "xs.hpt.s1")
    ]
    with pytest.raises(UserError, match=r"--only t.htp"):
        matching(runs, ["t.htp.*"])


def test_dotted_keys_nest() -> None:
    assert nested({"a.b": 1, "a.c": 2, "d": [3]}) == {"a": {"b": 1, "c": 2}, "d": [3]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["matrix.seeds=[1, 9]"], r"seeds \[9\] are tuned on and reported"),
        (["sweep.sets={chain: mini:test/chain}"], "mini:test/chain decide about values"),
        (["sweep.tries=[{learner.learning_rate: 1.0e-4}]"], "same number of tries.*grpo 1, hpt 2"),
        (["matrix.methods=[grpo, htp]"], "htp, which is not defined. Did you mean `hpt`"),
        (["matrix.methods=[grpo]"], "`reference` is hpt"),
        (["matrix.seeds=[]"], "name the seeds to report"),
        (["sets.in_distribution=[chain, word]"], "`sets.in_distribution` names word"),
        (["methods.hpt={title: HPT, confg: {}}"], "unknown key `confg`"),
        (["sweep.seeds=[]"], "tries need `sweep.seeds`"),
        (["models.t.tuning_bases={a: {}}"], "`models.t.tuning_bases` needs `bases`"),
        (
            [BASES[0], "models.t.tuning_bases={c: {model: {path: 'mini:t-s6'}}}"],
            "c of `tuning_bases` is reported",
        ),
    ],
)
def test_what_would_not_be_a_fair_comparison_is_refused(
    suite_file: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(suite_file, words)


def test_unequal_prompt_attempts_are_refused_without_a_reason(suite_file: Path) -> None:
    longer = "methods.grpo.config={algorithm: {name: grpo}, run: {steps: 20}}"
    unfair = load_suite(suite_file, [longer])
    with pytest.raises(UserError, match="unequally many prompts: grpo 160, hpt 80"):
        reported_runs(unfair, untuned(unfair))
    suite = load_suite(suite_file, [longer, "methods.grpo.budget=twice as many, since it is cheap"])
    assert {run.attempts for run in reported_runs(suite, untuned(suite))} == {80, 160}


def test_a_broken_setting_names_the_method(suite_file: Path) -> None:
    suite = load_suite(suite_file, ["methods.gamma.config={selection: {gamma: 0.3}}"])
    with pytest.raises(UserError, match="gamma on t"):
        reported_runs(suite, untuned(suite))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("mini/small", "t"),
        ("mini/full", "t"),
        ("mini/bases", "t"),
        ("paper/suite", "qwen2.5-math-1.5b"),
        ("paper/figures_3_4", "qwen2.5-math-1.5b"),
    ],
)
def test_the_suites_that_come_with_the_project_are_whole(name: str, model: str) -> None:
    suite = load_suite(ROOT / "configs" / f"{name}.yaml", [f"matrix.models=[{model}]"])
    runs = reported_runs(suite, untuned(suite))
    everywhere = {name for name, method in suite.methods.items() if model in (method.models or [model])}
    assert {run.method for run in runs} == everywhere
    assert not set(suite.keys.sweep.sets.values()) & set(suite.keys.sets.test.values())


def test_the_plan_is_shown_without_a_trace(suite_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(suite_file), "--only", "t.*.s1", "--dry-run", "models.t.config.run.steps=4"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "0 of 4 tries and 0 of 3 runs are done" in shown
    assert "32" in shown  # 4 steps of 8 prompts
    assert not (suite_file.parent / "out").exists()
    assert main([str(suite_file), "--only", "t.none", "--dry-run"]) == 2
