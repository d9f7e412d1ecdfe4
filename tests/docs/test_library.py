"""docs/library.md is true: its loops run as they stand, TRL's where TRL is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hpt_ray import algorithms
from hpt_ray.data.mini.model import init_weights, model_config
from hpt_ray.data.mini.tokenizer import build_tokenizer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
PLAIN, TRAINER, TRAINING = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    namespace = {"__name__": "library", **names}
    exec(compile(code, "docs/library.md", "exec"), namespace)
    return namespace


def test_the_plain_loop_learns() -> None:
    solved = run(PLAIN)["solved"]
    assert sum(solved[:5]) / 5 < 0.1
    assert sum(solved[-5:]) / 5 > 0.9


def test_every_name_of_the_page_exists() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([A-Za-z_]+)", row)]
    assert len(named) > 20
    for name in named:
        assert hasattr(algorithms, name), name
        assert name in algorithms.__all__, name


# ---- TRL ----------------------------------------------------------------------------------------------


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_config(model_config("t"), dtype=torch.float32)
    init_weights(model, 0)
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def on_a_cpu(training: str, folder: Path) -> str:
    """The page's run with the tiny model, here, and in float32."""
    training = training.replace('"path/of/a/model"', repr(str(folder)))
    training = training.replace('output_dir="trl"', f"output_dir={str(folder.parent / 'trl')!r}")
    return training.replace(
        "max_steps=2,", "max_steps=2, use_cpu=True, bf16=False, save_strategy='no', seed=1,"
    )


def trained(code: str, folder: Path) -> Any:
    torch.manual_seed(0)
    names = run(TRAINER)
    before = {name: value for name, value in names.items() if not name.startswith("__")}
    return run(on_a_cpu(code, folder), **before)["trainer"]


@pytest.fixture
def has_trl() -> None:
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'hpt_ray[trl]'")
    pytest.importorskip("datasets", reason="datasets, which TRL needs, is not installed")


@pytest.mark.usefixtures("has_trl")
def test_the_estimator_trains_in_trls_loop(model_folder: Path) -> None:
    trainer = trained(TRAINING, model_folder)
    assert trainer.state.global_step == 2
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["grad_norm"] > 0
        assert line["policy/ratio"] == pytest.approx(1.0)
        assert line["policy/entropy"] > 0


@pytest.mark.usefixtures("has_trl")
@pytest.mark.parametrize(("ours", "trls"), [("grpo", "grpo"), ("dr_grpo", "dr_grpo"), ("dapo", "dapo")])
def test_the_gradient_is_that_of_trls_own_loss(model_folder: Path, ours: str, trls: str) -> None:
    """The same samples by the same seeds: after two steps the weights are the same.

    TRL adds 1e-4 to the standard deviation, we 1e-6 as the papers do. AdamW would hide a wrong scale, SGD does not.
    """
    code = TRAINING.replace("max_steps=2,", "max_steps=2, optim='sgd', beta=0.0, max_grad_norm=1e9,")
    code = code.replace("learning_rate=1e-4,", f"learning_rate=1.0, loss_type={trls!r},")
    scale = "scale_rewards='none'," if ours == "dr_grpo" else ""
    code = code.replace('report_to="none",', f'report_to="none", {scale}')
    mine = trained(code.replace('"dr_grpo"', repr(ours)), model_folder)
    their_code = code.replace("EstimatorTrainer(", "GRPOTrainer(")
    their_code = re.sub(r"    estimator=.*\n", "", their_code)
    theirs = trained(their_code, model_folder)
    start = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    step, other = (
        torch.cat([(weight - start[name]).flatten() for name, weight in trainer.model.state_dict().items()])
        for trainer in (mine, theirs)
    )
    assert other.norm() > 1e-3
    assert (step - other).norm() / other.norm() < 2e-3
