"""Names of other trainers get the key that is meant here as a hint; each of them does."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpt_ray.cli.explain import main as explain
from hpt_ray.config.foreign import NAMES
from hpt_ray.config.load import known_keys, load_config
from hpt_ray.errors import UserError
from hpt_ray.main import main

MODEL = "model.path=some/model"
# What people who come from TRL, LLaMA-Factory, OpenRLHF and verl try first: name → key.
TRIED = {
    "lr": "learner.learning_rate",
    "learning_rate": "learner.learning_rate",
    "batch_size": "prompts_per_step",
    "num_generations": "group_size",
    "beta": "algorithm.kl_coef",
    "n": "group_size",
    "max_completion_length": "data.max_response_tokens",
    "num_train_epochs": "run.steps",
    "temperature": "rollout.temperature",
    "epsilon": "algorithm.clip_low",
    "output_dir": "run.dir",
    "model_name_or_path": "model.path",
    "reward_funcs": "reward.function",
    "report_to": "observe.trackers",
    "bf16": "model.dtype",
    "n_samples_per_prompt": "group_size",
    "init_kl_coef": "algorithm.kl_coef",
    "actor_rollout_ref.rollout.n": "group_size",
    "actor_rollout_ref.actor.optim.lr": "learner.learning_rate",
    "data.train_files": "data.train",
    "data.max_response_length": "data.max_response_tokens",
    "algorithm.adv_estimator": "algorithm.name",
    "actor_rollout_ref.actor.kl_loss_coef": "algorithm.kl_coef",
    "trainer.total_epochs": "run.steps",
    "trainer.n_gpus_per_node": "learner.num_ranks",
    "custom_reward_function.path": "reward.function",
    "trainer.experiment_name": "run.name",
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": "learner.sequence_parallel",
    "enable_thinking": "data.chat_template_kwargs",
    "data.apply_chat_template_kwargs.enable_thinking": "data.chat_template_kwargs",
    "algorithm.filter_groups.enable": "selection.max_num_gen_batches",
    "algorithm.filter_groups.metric": "selection.max_num_gen_batches",
    "data.truncation": "data.max_prompt_tokens",
    "importance_sampling_level": "algorithm.name",
    "algorithm.norm_adv_by_std_in_grpo": "algorithm.rollout_advantage",
    "reward_model.reward_manager": "reward.function",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": "max_tokens_per_micro_batch",
    "save_strategy": "checkpoint.every",
    "learner.lr": "learner.learning_rate",
    "training.per_device_train_batch_size": "max_tokens_per_micro_batch",
}


def refusal(*words: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, [MODEL, *words])
    return str(caught.value)


@pytest.fixture(scope="module")
def lines() -> dict[str, str]:
    """What a configuration with every name says, by name: all that is wrong is told at once."""
    said = refusal(*(f"{name}=1" for name in NAMES)).splitlines()
    return {line.split("`")[1]: line for line in said}


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_foreign_and_means_a_key(name: str, lines: dict[str, str]) -> None:
    key, note = NAMES[name]
    assert key in known_keys()
    assert name not in known_keys()
    assert not note.endswith(".")
    assert lines[name] == f"command line: unknown key `{name}`. Here it is `{key}`{note and f' ({note})'}."


def test_what_people_try_first_is_known() -> None:
    said = refusal(*(f"{name}=1" for name in TRIED)).splitlines()
    for line, (name, key) in zip(said, TRIED.items(), strict=True):
        assert f"`{name}`. Here it is `{key}`" in line


def test_a_nested_file_of_another_trainer_gets_a_hint_for_each_of_its_names(tmp_path: Path) -> None:
    file = tmp_path / "verl.yaml"
    file.write_text(
        "actor_rollout_ref:\n  model: {path: Qwen/Qwen3-8B}\n  rollout: {n: 8, temperature: 0.6}\n"
        "data: {train_batch_size: 128}\nalgorithm: {adv_estimator: grpo}\n"
    )
    said = refusal(path=file).splitlines()
    assert len(said) == 5
    for line, key in zip(
        said,
        ["model.path", "group_size", "rollout.temperature", "prompts_per_step", "algorithm.name"],
        strict=True,
    ):
        assert f"Here it is `{key}`" in line


def test_typing_errors_still_get_the_nearest_key() -> None:
    assert "Did you mean `run.steps`?" in refusal("run.step=3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "1e-6"], "Here it is `learner.learning_rate`. Keys are written without dashes"),
        (["--num-generations=4"], "Here it is `group_size`."),
        (["--run.steps", "3"], "Here it is `run.steps`."),
        (["--run.stesp", "3"], "Did you mean `run.steps`?"),
    ],
)
def test_options_of_another_trainer_are_told_as_keys(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_explain_says_what_it_explains_where_nothing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain([]) == 0
    first, _, then, *_ = capsys.readouterr().out.splitlines()
    assert "configs/quickstart.yaml" in first
    assert "algorithm.name=grpo" in first
    assert then.startswith("hpt:")
