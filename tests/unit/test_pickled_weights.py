"""Weights are read from safetensors or not at all: other formats are pickles, which run code as they are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hpt_ray.config.schema import ModelConfig, RolloutConfig
from hpt_ray.data.mini.model import create_model
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError
from hpt_ray.evaluation.model import locate_model
from hpt_ray.learner.model import load_policy
from hpt_ray.rollout.engine import EngineSpec, engine_arguments


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A whole model folder but for the format of its weights."""
    model = create_model("t", seed=0)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_training_refuses_them(pickled: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"model.path={pickled}: no safetensors weights")):
        load_policy(ModelConfig(path=str(pickled)), str(pickled), seed=0)


def test_evaluation_refuses_them(pickled: Path) -> None:
    with pytest.raises(UserError, match="no safetensors weights"):
        locate_model(str(pickled))


def test_the_engine_is_told_to_read_nothing_else(pickled: Path) -> None:
    spec = EngineSpec(
        model=ModelConfig(path=str(pickled)),
        model_path=str(pickled),
        rollout=RolloutConfig(),
        max_model_len=64,
        seed=0,
        load_weights=True,
    )
    assert engine_arguments(spec)["load_format"] == "safetensors"


def test_code_of_a_model_is_off_and_said_aloud_when_on(pickled: Path, capsys: pytest.CaptureFixture) -> None:
    assert not ModelConfig().trust_remote_code
    load_tokenizer(str(pickled))
    assert capsys.readouterr().err == ""
    load_tokenizer(str(pickled), trust_remote_code=True)
    assert "warning: model.trust_remote_code is true" in capsys.readouterr().err
