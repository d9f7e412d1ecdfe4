"""What `python -m hpt_ray.cli.explain` prints is what is trained; and each algorithm has a configuration."""

import json
import re
from pathlib import Path

import pytest

from hpt_ray.algorithms import ALGORITHMS, GATES, estimator_from_config, overview, table
from hpt_ray.cli.explain import main
from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_config
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.setup import check_teacher, prepare
from hpt_ray.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "algorithm"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def test_every_algorithm_has_a_configuration() -> None:
    assert set(ALGORITHMS) <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_ready_to_start(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", [])
    check_config(config)
    prepared = prepare(config, tokenizer_path(config.model.path))
    assert config.run.name == name
    assert sum(phase.config.run.steps for phase in prepared.phases) == config.run.steps
    for phase in prepared.phases:
        assert phase.estimator == estimator_from_config(phase.config.algorithm)
        assert len(phase.prompts) >= phase.config.prompts_per_step
    if name in ALGORITHMS:
        assert [phase.estimator.name for phase in prepared.phases] == [name]


def test_recipes_sample_what_their_methods_sample() -> None:
    """mini-task.md, section 6: LUFFY's demonstration is one of its 8, SRFT's comes on top, SFT has no rollouts."""
    counts = {}
    for name in ("sft", "grpo", "dr_grpo", "luffy", "srft", "hpt", "hpt_posterior", "sft_then_grpo"):
        config = load_config(CONFIGS / f"{name}.yaml", [])
        phases = prepare(config, tokenizer_path(config.model.path)).phases
        counts[name] = [(phase.config.run.steps, phase.gate, phase.num_rollouts) for phase in phases]
    assert counts == {
        "sft": [(150, "demonstrations", 0)],
        "grpo": [(100, "rollouts", 8)],
        "dr_grpo": [(100, "rollouts", 8)],
        "luffy": [(100, "both", 7)],
        "srft": [(100, "both", 8)],
        "hpt": [(100, "switch", 8)],
        "hpt_posterior": [(100, "posterior", 8)],
        "sft_then_grpo": [(150, "demonstrations", 0), (100, "rollouts", 8)],
    }


def test_the_page_of_algorithms_draws_the_table_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "--all")
    assert code == 0
    assert text.startswith(overview())
    assert table.__doc__ is not None
    assert f"\n\n{overview()}\n\n" in table.__doc__, "hpt_ray/algorithms/table.py: draw the table anew"
    for name, gate in GATES.items():
        assert re.search(rf"^{name} +{re.escape(gate.data)}$", text, re.MULTILINE)


def test_phases_are_explained_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "--config", str(CONFIGS / "sft_then_grpo.yaml"))
    assert code == 0
    first, second = text.index("Phase 1, steps 1 to 150"), text.index("Phase 2, steps 151 to 250")
    assert first < text.index("sft: supervised") < second < text.index("grpo: group relative")


def test_a_soft_gate_shows_both_sides_of_one_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "selection.gate=posterior", "selection.gamma=0.125")
    assert "α = 0.983948, β = 0.0160522 (weighed)" in text  # 2 of 4: Pr(Bin(5, 1/8) ≥ 3)
    assert "α = 0.512909, β = 0.487091 (weighed)" in text  # 0 of 4: 1 − (7/8)^5


def test_a_pull_to_the_base_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "learner.base_pull=20")
    assert "base pull    θ ← θ − lr·κ·(θ − θ₀) after each update, κ = 20, θ₀ = mini:t" in text


def test_a_falling_mu_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "--config", str(CONFIGS / "chord_mu.yaml"))
    assert "term 1 on rollouts, times 1 · (1 − μ)   [μ = 0.9 → 0.05 over 100 steps, half a cosine]" in text
    assert "term 2 on demonstrations, times 1 · μ   [μ = 0.9" in text


def test_a_teacher_must_be_named_and_have_the_policys_tokens(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, error = run(capsys, "algorithm.name=opd")
    assert code == 2
    assert "set reference.path to the folder of a model with the policy's tokenizer" in error
    config = load_config(CONFIGS / "opd.yaml", [f"reference.path={tmp_path}"])
    ours = tokenizer_path(config.model.path)
    other = json.loads((Path(ours) / "tokenizer.json").read_text(encoding="utf-8"))
    word, number = next(iter(other["model"]["vocab"].items()))
    del other["model"]["vocab"][word]
    other["model"]["vocab"]["§"] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(other), encoding="utf-8")
    for name in ("tokenizer_config.json",):
        (tmp_path / name).write_text((Path(ours) / name).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="its tokenizer has other tokens"):
        check_teacher(config, ours)


def test_a_comparison_with_the_demonstration_needs_both(capsys: pytest.CaptureFixture[str]) -> None:
    for gate in ("switch", "linear", "demonstrations"):
        code, _, error = run(capsys, "algorithm.name=luffy", f"selection.gate={gate}")
        assert code == 2
        assert "set selection.gate to auto or both" in error


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "--config", str(CONFIGS / f"{name}.yaml"))
    assert code == 0
    assert text.startswith(f"{name}: {ALGORITHMS[name].title}  (mode: default")
    for word in (
        "advantage",
        "denominator",
        "clip",
        "shaping",
        "loss_aggregation",
        "gate",
        "N = 32",
        "Example",
    ):
        assert word in text
    assert "nan" not in text
    # The contributions of each table add up to the policy terms below it.
    contributions = 0.0
    for line in text.splitlines():
        if match := re.search(r"^  (?:rollout|demonstration|prefix).* ([+-]\d+\.\d{4})$", line):
            contributions += float(match[1])
        if match := re.search(r"^  policy terms ([+-]\d+\.\d{4})", line):
            assert float(match[1]) == pytest.approx(contributions, abs=1e-3)
            contributions = 0.0


def test_the_example_of_dr_grpo_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Rewards 1, 0, 0, 1 have mean ½; with C = 10 each token counts 1/(1 · 4 · 10)."""
    words = ("algorithm.rollout_coef=1", "algorithm.length_constant=10")
    _, text, _ = run(capsys, "algorithm.name=dr_grpo", *words)
    samples = [line.split() for line in text.splitlines() if line.startswith("  rollout ")]
    assert [sample[2] for sample in samples] == ["1", "0", "0", "1"]
    assert [sample[4] for sample in samples] == ["0.5", "-0.5", "-0.5", "0.5"]
    assert {sample[-2] for sample in samples} == {"0.025"}
    # Rollout 2: log π = −0.55, −0.9 after −0.5, −1.2; neither ratio is below 0.8, so neither is clipped.
    assert samples[1][5:-2] == ["-0.55", "-0.9", "0.951", "1.35", "-0.476", "-0.675"]
    assert samples[1][-1] == "-0.0217"


def test_the_switch_shows_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "selection.gamma=0.25")
    assert "at most 2 of 8 solved → demonstration" in text
    solved, unsolved = text.split("Example:")[1:]
    assert "(solved)" in solved
    assert "demonstration " not in solved.split("contribution")[1]
    assert "(unsolved)" in unsolved
    assert unsolved.count("\n  demonstration") == 1


def test_samples_that_add_nothing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "selection.gamma=-1")
    assert "exactly 0: rollout 1, rollout 2, rollout 3, rollout 4" in text


def test_what_starts_actors_of_its_own_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, plain, _ = run(capsys, "algorithm.name=grpo")
    assert "its own actors" not in plain
    _, ppo, _ = run(capsys, "algorithm.name=ppo", "algorithm.kl_coef=0.1", "algorithm.kl_in=reward")
    assert "  critic       its own actors" in ppo
    assert "  reference    its own actors; mini:t, frozen" in ppo
    assert "the KL is taken off before the advantage" in ppo


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm.name=grp"], "Did you mean grpo"),
        (["algorithm.nam=grpo"], "Did you mean `algorithm.name`"),
        (["algorithm.name=grpo", "algorithm.rollout_advantage=one"], "makes no sense on rollouts"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["selection.gamma=0.3"], "selection.gamma"),
        (["algorithm.name=grpo", "group_size=0"], "trains on rollouts"),
        (["algorithm.name=ppo", "critic.num_gpus=2"], "critic.num_ranks"),
    ],
)
def test_bad_input_ends_with_one_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, error = run(capsys, *words)
    assert (code, text) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_all_prints_table_1_with_the_formula_of_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--all"]) == 0
    said = capsys.readouterr().out
    assert overview() in said
    for part in (
        "m = 0 if (Â > 0 and",
        "π_ref = 1, so",
        "Â = (R − mean_G R)/(std_G R + 1e-6)",
        "f'(π_θ) = γ/",
    ):
        assert part in said
