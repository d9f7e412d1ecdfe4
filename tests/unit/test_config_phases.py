"""The phases of a run: what they resolve to, what they may not change, and where each step belongs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpt_ray.config.checks import check_config
from hpt_ray.config.load import dump_config, known_keys, load_config
from hpt_ray.config.phases import PER_PHASE, phases_of
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.setup import prepare, roles_of
from hpt_ray.errors import UserError
from hpt_ray.learner.schedule import learning_rates

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
GOOD = ("model.path=m", "data.train=[a.parquet]")
SFT = "{steps: 3, group_size: 0, algorithm: {name: sft}, learner: {learning_rate: 1.0e-3}}"
GRPO = "{steps: 2, algorithm: {name: grpo}, data: {train: [b.parquet]}, selection: {gamma: 0.25}}"
BOTH = f"phases=[{SFT}, {GRPO}]"


def config_of(*words: str):
    return load_config(None, [*GOOD, *words])


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        check_config(config_of(*words))
    return str(caught.value)


def test_a_run_without_phases_is_one() -> None:
    config = config_of("run.steps=7")
    (phase,) = phases_of(config)
    assert (phase.number, phase.before, phase.last) == (1, 0, 7)
    assert phase.config is config


def test_each_phase_is_the_configuration_of_a_run_of_its_steps() -> None:
    config = config_of(BOTH, "algorithm.rollout_coef=4", "learner.warmup_steps=2")
    assert config.run.steps == 5
    sft, grpo = phases_of(config)
    assert [(p.number, p.before, p.last, p.config.run.steps) for p in (sft, grpo)] == [
        (1, 0, 3, 3),
        (2, 3, 5, 2),
    ]
    assert (sft.config.algorithm.name, sft.config.group_size) == ("sft", 0)
    assert (grpo.config.algorithm.name, grpo.config.group_size) == ("grpo", 8)
    assert (sft.config.learner.learning_rate, grpo.config.learner.learning_rate) == (1e-3, 5e-6)
    assert (sft.config.data.train, grpo.config.data.train) == (["a.parquet"], ["b.parquet"])
    for phase in (sft, grpo):  # what a phase does not name is the run's
        assert phase.config.algorithm.rollout_coef == 4
        assert phase.config.learner.warmup_steps == 2
        assert phase.config.phases == []


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = config_of(BOTH)
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", []) == config


def test_steps_are_those_of_the_phases() -> None:
    assert config_of(BOTH, "run.steps=5").run.steps == 5
    message = refused(BOTH, "run.steps=100")
    assert message.startswith("command line: `run.steps` is 100, but the phases have 5 steps together")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("[{algorithm: {name: sft}}]", "phase 1: `steps` is None"),
        ("[{steps: 0}]", "phase 1: `steps` is 0"),
        ("[{steps: 2}, {steps: 1.5}]", "phase 2: `steps` is 1.5"),
        ("[3]", "`phases` must be list[dict[str, Any]]"),
        ("[{steps: 1, algorithm: {nam: sft}}]", "phase 1: unknown key `algorithm.nam`. Did you mean `algorithm.name`"),
        ("[{steps: 1, updates_per_step: many}]", "phase 1: `updates_per_step` must be int, but is 'many'"),
        ("[{steps: 1, algorithm: sft}]", "phase 1: `algorithm` is a section, not a value"),
        ("[{steps: 1, rollout: {num_workers: 2}, learner: {zero_stage: 3}}]",
         "phase 1: `rollout.num_workers`, `learner.zero_stage` cannot differ between phases; what can: prompts_per"),
        ("[{steps: 1, model: {path: x}}]", "`model.path` cannot differ"),
        ("[{steps: 1, run: {steps: 3}}]", "`run.steps` cannot differ"),
        ("[{steps: 1, phases: []}]", "`phases` cannot differ"),
    ],
)  # fmt: skip
def test_a_phase_that_cannot_be_is_refused_by_its_number(phases: str, message: str) -> None:
    assert message in refused(f"phases={phases}")


def test_rules_hold_in_every_phase() -> None:
    message = refused("phases=[{steps: 1}, {steps: 1, prompts_per_step: 10, updates_per_step: 4}]")
    assert message.startswith("phase 2: `prompts_per_step` (10) must be a multiple")
    # What a phase mends is not wrong.
    check_config(config_of("data.train=[]", "phases=[{steps: 1, data: {train: [a.parquet]}}]"))


def test_every_name_of_what_may_differ_exists() -> None:
    sections = {name.rpartition(".")[0] for name in known_keys()}
    assert set(PER_PHASE) <= set(known_keys()) | sections


def test_the_learning_rate_counts_from_the_beginning_of_a_phase() -> None:
    words = (
        "learner.learning_rate=1.0",
        "learner.warmup_steps=2",
        "critic.learning_rate=0.5",
        "prompts_per_step=4",
    )
    first, second = phases_of(
        config_of(
            *words,
            "phases=[{steps: 3}, {steps: 3, updates_per_step: 2, learner: {schedule: linear, min_lr_ratio: 0}}]",
        )
    )
    assert [learning_rates(first, step, 0)[0] for step in (1, 2, 3)] == [0.5, 1, 1]
    rates = [learning_rates(second, step, update) for step in (4, 5, 6) for update in (0, 1)]
    assert [policy for policy, _ in rates] == pytest.approx([0.5, 1, 1, 2 / 3, 1 / 3, 0])
    assert [critic for _, critic in rates] == pytest.approx([0.25, 0.5, 0.5, 1 / 3, 1 / 6, 0])


def test_steps_belong_to_phases_and_actors_to_any_of_them() -> None:
    config = load_config(
        QUICKSTART,
        ["evaluation.sets={}", "evaluation.every=0", "run.steps=5",
         f"phases=[{SFT}, {{steps: 2, algorithm: {{name: ppo}}}}]"],
    )  # fmt: skip
    prepared = prepare(config, tokenizer_path(config.model.path))
    assert [prepared.phase_of(step).number for step in range(1, 7)] == [1, 1, 1, 2, 2, 2]
    assert [(p.gate, p.num_rollouts) for p in prepared.phases] == [("demonstrations", 0), ("rollouts", 8)]
    roles = roles_of(config)
    assert (roles.rollouts, roles.critic, roles.reference) == (True, True, False)


def test_a_reference_of_a_later_phase_must_be_named() -> None:
    kl = "phases=[{steps: 1}, {steps: 1, algorithm: {kl_coef: 0.01}}]"
    with pytest.raises(
        UserError, match=r"algorithm\.kl_coef of phase 2 .* name the model .* in reference\.path"
    ):
        roles_of(config_of(kl))
    assert roles_of(config_of(kl, "reference.path=elsewhere")).reference
