"""Nothing of a checkpoint is unpickled but tensors, numbers and the few classes that a training state is made of."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hpt_ray.errors import UserError
from hpt_ray.learner import random_state
from hpt_ray.learner.base import TENSORS_ONLY
from hpt_ray.learner.deepspeed_state import tensors_only

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "run-0.1" / "checkpoints" / "step-000002" / "learner"


class Planted:
    """Runs code where it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return Path.touch, (self.sign,)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_generators_go_on_from_json(tmp_path: Path) -> None:
    random_state.seed(7)
    draw()
    np.random.standard_normal()  # leaves half of a pair behind
    random_state.write(tmp_path, 1)
    expected = [draw(), np.random.standard_normal()]
    random_state.seed(8)
    assert not random_state.read(tmp_path, 0)
    assert random_state.read(tmp_path, 1)
    assert [draw(), np.random.standard_normal()] == expected
    assert set(json.loads((tmp_path / "random-1.json").read_text())) == {"torch", "python", "numpy"}


def test_random_generators_of_an_older_version_go_on() -> None:
    random_state.seed(8)
    assert random_state.read(OLD, 0)
    first = draw()
    states = torch.load(OLD / "random-0.pt", weights_only=False)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    assert draw() == first


def test_a_planted_random_state_does_not_run(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    torch.save({"python": Planted(sign)}, tmp_path / "random-0.pt")
    with pytest.raises(UserError, match=r"holds more than a training state.* Unsupported global"):
        random_state.read(tmp_path, 0)
    assert not sign.exists()


def test_what_deepspeed_loads_is_a_training_state_or_refused(tmp_path: Path, monkeypatch) -> None:
    for name, value in TENSORS_ONLY.items():
        monkeypatch.setenv(name, value)
    file = next(OLD.glob("state/*optim_states.pt"))
    with tensors_only(OLD):
        assert "optimizer_state_dict" in torch.load(file, weights_only=False)
    sign = tmp_path / "sign"
    torch.save({"optimizer_state_dict": Planted(sign)}, tmp_path / "planted.pt")
    with pytest.raises(UserError, match="holds more than a training state"), tensors_only(tmp_path):
        torch.load(tmp_path / "planted.pt", weights_only=False)
    assert not sign.exists()
