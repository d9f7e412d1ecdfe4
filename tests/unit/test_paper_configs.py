"""Every recipe of configs/paper dry-runs, and holds the published values.

The values stand here a second time, written from the paper (section 3.1, Eq 10 to 13) and the released scripts, so
that a slip in a file does not go unseen.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hpt_ray.algorithms import estimator_from_config
from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_config
from hpt_ray.config.phases import phases_of
from hpt_ray.config.schema import Config
from hpt_ray.data.mini.model import create_model
from hpt_ray.driver.setup import check_choices
from hpt_ray.errors import UserError
from hpt_ray.evaluation.plan import load_evaluation
from hpt_ray.learner.model import load_policy
from hpt_ray.main import main
from hpt_ray.tools.plan import check_plan, find_shape, make_plan
from hpt_ray.tools.plan.paper_table import METHODS, MODELS, PAGE, PLACEMENTS, load_recipe, render_page
from hpt_ray.tools.suite.matrix import reported_runs, untuned
from hpt_ray.tools.suite.suite import load_suite

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "paper"
RECIPES = sorted(PAPER.glob("*_as_*.yaml"))

# The same for every recipe.
EVERYWHERE: dict[str, Any] = {
    "prompts_per_step": 128,
    "group_size": 8,
    "updates_per_step": 2,  # 128 / ppo_mini_batch_size 64
    "run.steps": 500,
    "model.dtype": "bfloat16",
    "model.trust_remote_code": False,
    "data.max_prompt_tokens": 1024,
    "data.max_response_tokens": 8192,
    "data.shuffle": True,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.top_k": -1,
    "rollout.max_off_policy_steps": 0,
    "reward.function": "math",
    "reward.require_finished": False,
    "reward.terms": {},
    "selection.gate": "auto",
    "algorithm.name": "hpt",
    "algorithm.rollout_coef": 1.0,
    "algorithm.kl_coef": 0.0,
    "algorithm.correction": "none",
    "learner.learning_rate": 5e-6,
    "learner.schedule": "constant",
    "learner.warmup_steps": 0,
    "learner.betas": [0.9, 0.999],
    "learner.weight_decay": 0.01,
    "learner.max_grad_norm": 1.0,
    "learner.gradient_checkpointing": True,
    "learner.recompute_old_logprobs": True,
    "checkpoint.every": 50,
    "checkpoint.keep": 2,
    "checkpoint.best_of": None,
    "evaluation.every": 10,
    "evaluation.before_training": True,
    "evaluation.samples": 8,
    "evaluation.temperature": 0.6,
    "evaluation.max_response_tokens": 8192,
}
QWEN = {
    "model.config_overrides": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 40000.0},
        "max_position_embeddings": 16384,
    },
    "data.template": "chat",
    "data.system_prompt": "",
    "data.end_token": "<|endoftext|>",
    "selection.gamma": 0.0,
}
BY_MODEL: dict[str, dict[str, Any]] = {
    "qwen2.5-math-7b": {"model.path": "Qwen/Qwen2.5-Math-7B", **QWEN},
    "qwen2.5-math-1.5b": {"model.path": "Qwen/Qwen2.5-Math-1.5B", **QWEN},
    "llama-3.1-8b": {
        "model.path": "meta-llama/Llama-3.1-8B",
        "model.config_overrides": {},
        "data.template": "Question:\n{prompt}\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.\nAnswer:\nLet's think step by step.",
        "data.add_bos": False,
        "data.system_prompt": "",
        "data.end_token": "<|end_of_text|>",
        "selection.gamma": 2 / 8,
    },
}
AS_CODE = {"algorithm.mode": "official", "evaluation.top_p": 1.0}
AS_PAPER = {
    "algorithm.mode": "paper",
    "algorithm.demo_coef": 1.0,
    "learner.skip_grad_norm": 0.0,
    "evaluation.top_p": 0.95,
}
LAMBDA = {"qwen2.5-math-7b": 1.0, "qwen2.5-math-1.5b": 0.3, "llama-3.1-8b": 1.0}
SKIP = {"qwen2.5-math-7b": 80.0, "qwen2.5-math-1.5b": 80.0, "llama-3.1-8b": 0.0}

# Of each term of the loss: stream, advantage, π_ref, clip, loss aggregation.
TERMS = {
    "official": {
        ("rollouts", "group_mean", "old", "none", "official-sum"),
        ("demonstrations", "one", "current", "none", "official-micro-batch-mean"),
    },
    "paper": {
        ("rollouts", "group_std", "old", "ppo", "seq-mean-token-sum"),
        ("demonstrations", "one", "current", "none", "seq-mean-token-mean"),
    },
}


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@cache
def _recipe(path: Path) -> Config:
    config = load_config(path, [])
    check_config(config)
    return config


def recipe(path: Path) -> Config:
    return deepcopy(_recipe(path))


def test_there_are_two_recipes_for_each_model() -> None:
    names = {f"{model}_{form}.yaml" for model in BY_MODEL for form in ("as_code", "as_paper")}
    assert {path.name for path in RECIPES} == names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_holds_the_published_values(path: Path) -> None:
    config = recipe(path)
    model, _, form = path.stem.partition("_")
    expected = EVERYWHERE | BY_MODEL[model]
    if form == "as_code":
        expected |= AS_CODE
        expected |= {"algorithm.demo_coef": LAMBDA[model], "learner.skip_grad_norm": SKIP[model]}
    else:
        expected |= AS_PAPER
    found = {key: value_of(config, key) for key in expected}
    assert found == expected
    assert set(config.evaluation.sets) == {"aime24", "amc", "math500"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_computes_the_published_loss(path: Path) -> None:
    config = recipe(path)
    estimator = estimator_from_config(config.algorithm)
    terms = {(t.stream, t.advantage, t.denominator, t.clip, t.loss_aggregation) for t in estimator.terms}
    assert terms == TERMS[config.algorithm.mode]
    assert estimator.entropy_coef == (0.001 if config.algorithm.mode == "official" else 0.0)
    assert estimator.settings.length_constant in (None, 8192)
    if config.algorithm.mode == "paper":
        assert (estimator.settings.clip_low, estimator.settings.clip_high) == (0.2, 0.2)
    assert not estimator.needs_reference


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_dry_runs_without_anything(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "GPU hours of an A100" in said
    assert "Not checked" in said
    assert "data/openr1.parquet is not here" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", MODELS.values())
def test_every_method_and_every_placement_fits(model: str) -> None:
    combinations = [(method, None) for method in METHODS.values()]
    combinations += [(None, placement) for placement in PLACEMENTS.values()]
    combinations += [("sft_then_grpo", "four_nodes")]
    for method, placement in combinations:
        config = load_recipe(model, method, placement)
        check_choices(config)
        plan = make_plan(config, find_shape(config.model, config.model.path))
        check_plan(config, plan)
        nodes = {"two_nodes": 2, "four_nodes": 4}.get(placement or "", 1)
        assert plan.num_gpus == 8 * nodes, (method, placement)


# Values of single methods, by the phase they hold in.
METHOD_VALUES: dict[str, list[dict[str, Any]]] = {
    "sft": [
        {
            "prompts_per_step": 64,
            "run.steps": 3 * 45_800 // 64 + 2,  # 3 epochs of about 45.8k
            "learner.learning_rate": 5e-5,
            "learner.schedule": "cosine",
            "learner.min_lr_ratio": 0.1,
            "learner.warmup_steps": 215,
            "learner.weight_decay": 0.01,
            "algorithm.name": "sft",
            "algorithm.demo_coef": 1.0,
            "algorithm.demo_loss_aggregation": "token-mean",
        }
    ],
    "sft_then_grpo": [
        {"prompts_per_step": 64, "learner.learning_rate": 5e-5, "learner.schedule": "cosine"},
        {
            "prompts_per_step": 128,
            "run.steps": 500,
            "group_size": 8,
            "updates_per_step": 2,
            "learner.learning_rate": 1e-6,
            "learner.schedule": "constant",
            "algorithm.rollout_advantage": "group_mean",
            "algorithm.rollout_loss_aggregation": "token-mean",
            "algorithm.clip_low": 0.2,
            "algorithm.clip_high": 0.28,
            "algorithm.kl_coef": 0.0,
        },
    ],
    "luffy": [{"learner.learning_rate": 1e-6, "run.steps": 500, "algorithm.shaping_gamma": 0.1}],
    "srft": [{"learner.learning_rate": 1e-6, "run.steps": 500, "algorithm.name": "srft_official"}],
    "grpo": [{"learner.learning_rate": 1e-6, "algorithm.rollout_clip": "ppo", "algorithm.mode": "official"}],
    "dr_grpo": [{"learner.learning_rate": 1e-6, "algorithm.name": "dr_grpo"}],
}


@pytest.mark.parametrize("method", METHOD_VALUES)
@pytest.mark.parametrize("model", MODELS.values())
def test_a_method_replaces_what_is_hpts_own(model: str, method: str) -> None:
    config = load_recipe(model, method)
    phases = phases_of(config)
    assert len(phases) == len(METHOD_VALUES[method])
    for phase, expected in zip(phases, METHOD_VALUES[method], strict=True):
        assert {key: value_of(phase.config, key) for key in expected} == expected
        assert phase.config.algorithm.demo_coef == 1.0, "not the 0.3 of HPT on the 1.5B"
        assert phase.config.learner.skip_grad_norm == 0
        official = phase.config.algorithm.mode == "official"
        assert estimator_from_config(phase.config.algorithm).entropy_coef == (0.001 if official else 0.0)
    (_, estimator, _, num_rollouts), *_ = check_choices(config)
    assert num_rollouts == {"sft": 0, "sft_then_grpo": 0, "luffy": 7}.get(method, estimator.num_rollouts(8))


# Table 5 on the 1.5B, of whose SFT alone the code's coefficient is 0.3: demonstration terms as shaping, Z, coefficient.
SFT, RL = ("none", "official-micro-batch-mean"), ("luffy", "official-sum")
BRANCHES = {
    None: [(*SFT, 0.3)],
    "hpt_off_policy": [(*RL, 1.0)],
    "hpt_mix": [(*SFT, 0.1), (*RL, 1.0)],
}


@pytest.mark.parametrize("method", BRANCHES)
def test_the_weight_of_sft_does_not_scale_off_policy_rl(method: str | None) -> None:
    config = load_recipe("qwen2.5-math-1.5b", method)
    terms = estimator_from_config(config.algorithm).terms
    found = [(t.shaping, t.loss_aggregation, t.coef) for t in terms if t.stream == "demonstrations"]
    assert found == BRANCHES[method]
    names = [
        f"matrix.methods=[hpt,{method or 'grpo'}]",
        "matrix.models=[qwen2.5-math-1.5b]",
        "pass_at_k.methods=[hpt]",
    ]
    suite = load_suite(PAPER / "suite.yaml", names)
    runs = reported_runs(suite, untuned(suite))
    (run,) = (run for run in runs if run.id == f"qwen2.5-math-1.5b.{method or 'hpt'}.s1")
    assert run.config.algorithm == config.algorithm, "the suite runs what the files say"


def test_every_method_file_is_tested() -> None:
    files = {path.stem for path in (PAPER / "method").glob("*.yaml")}
    assert files == {*METHOD_VALUES, *(name for name in BRANCHES if name)}
    assert set(METHOD_VALUES) == {name for name in METHODS.values() if name}
    assert {path.stem for path in (PAPER / "placement").glob("*.yaml")} == set(PLACEMENTS.values())


def test_the_final_evaluation_is_the_papers() -> None:
    for name, samples in (("final", None), ("pass_at_k", 2048)):
        config = load_evaluation(str(PAPER / "evaluation" / f"{name}.yaml"), ["model=mini:t-fresh"])
        assert (config.temperature, config.top_p, config.max_response_tokens) == (0.6, 0.95, 8192)
        assert config.samples == samples
    assert config.pass_k == [2**i for i in range(11)]


# -- RoPE: what the recipes replace is what the model then uses ----------------------------------------


@pytest.fixture
def qwen_as_published(tmp_path: Path) -> Path:
    """A small Qwen2 whose config.json names its RoPE base as the published ones do."""
    create_model("t", 0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_parameters")
    config["rope_theta"] = 10000.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_rope_base_of_the_recipes_reaches_the_model(qwen_as_published: Path) -> None:
    model = recipe(PAPER / "qwen2.5-math-7b_as_code.yaml").model
    model.dtype = "float32"
    policy = load_policy(model, str(qwen_as_published), seed=0)
    frequencies = policy.model.rotary_emb.inv_freq
    expected = 40000.0 ** (-torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(frequencies, expected)
    assert policy.config.max_position_embeddings == 16384


def test_an_override_that_nothing_reads_is_refused(qwen_as_published: Path) -> None:
    model = recipe(PAPER / "qwen2.5-math-7b_as_code.yaml").model
    model.config_overrides = {"rope_theta": 40000.0}
    with pytest.raises(UserError, match=r"rope_theta.*rope_parameters"):
        find_shape(model, str(qwen_as_published))
    model.config_overrides = {"max_position_embedings": 16384}
    with pytest.raises(UserError, match="is `max_position_embeddings` meant"):
        find_shape(model, str(qwen_as_published))
    with pytest.raises(UserError, match="is `max_position_embeddings` meant"):
        load_policy(model, str(qwen_as_published), seed=0)


# -- the page ------------------------------------------------------------------------------------------


def test_the_cost_tables_of_the_page_are_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run `python -m hpt_ray.tools.plan.paper_table`"


def test_the_page_names_files_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in set(re.findall(r"configs/[\w./-]+\.yaml", text)):
        assert (ROOT / path).is_file(), path
    for page in set(re.findall(r"\]\((\w+\.md)\)", text)):
        assert (PAGE.parent / page).is_file(), page


def test_the_gsm8k_recipe_fits_a_gpu_of_24_gib(capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "configs" / "gsm8k_qwen2.5_0.5b.yaml"
    assert main(["--config", str(file), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of 24 GiB" in said
    assert "on 1 GPU;" in said
    assert main(["--config", str(file), "--dry-run", "cluster.gpu_memory_gib=8"]) == 2
    assert "cluster.gpu_memory_gib" in capsys.readouterr().err
