"""One part of each kind from files of a user in a real run: named in `run.plugins`, or by `python:FILE:NAME`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import TINY, run_main
from omegaconf import OmegaConf

from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
RAFT = PAGE.split("### From a file of yours")[1].split("```python\n")[1].split("```")[0]  # its my.py
PARTS = """
import dataclasses
import os
from pathlib import Path

import torch

from hpt_ray.algorithms import GATES, Gate
from hpt_ray.learner.architectures import ARCHITECTURES, ArchitectureRule
from hpt_ray.observe.trackers import TRACKERS, TrackerKind
from hpt_ray.reward.functions.table import REWARD_FUNCTIONS, RewardFunctionKind
from hpt_ray.types import Decision, Outcome, RewardResult
from hpt_ray.weight_sync.backends import BACKENDS

HERE = Path(__file__).parent

# A gate: prompts of which at least half the responses are correct.
def half(group, gamma, history):
    right, total = group.num_correct, len(group.rollouts)
    kept = 2 * right >= total
    return Decision(1.0 if kept else 0.0, 0.0, right, total, "kept" if kept else "left")


GATES["half"] = Gate(function=half, data="rollouts of prompts that are half correct", demonstrations="ignored")


# A stabilisation mask, in every learner rank: nothing is dropped.
def keep_all(log_ratio, advantage, settings):
    (HERE / f"masked-{os.getpid()}").touch()
    return torch.zeros_like(log_ratio)


# A reward function, which grades in processes of its own.
def even(response, ground_truth):
    (HERE / f"graded-{os.getpid()}").touch()
    right = len(response) % 2 == 0
    return RewardResult(float(right), Outcome.CORRECT if right else Outcome.WRONG)


REWARD_FUNCTIONS["even"] = RewardFunctionKind("even", "an even number of characters", lambda _: even)


# A tracker.
class Lines:
    def __init__(self, folder, config, first_step):
        self._file = folder.root / "lines.txt"

    def log(self, step, metrics):
        with self._file.open("a") as file:
            file.write(f"{step} {metrics['reward/mean']}\\n")

    def close(self):
        pass


TRACKERS["lines"] = TrackerKind(Lines, "one line a step")


# A weight sync backend: gloo that leaves a note of each member.
def noted(store, rank, world_size, timeout_s):
    (HERE / f"member-{rank}-of-{world_size}").touch()
    return BACKENDS["gloo"].make(store, rank, world_size, timeout_s)


BACKENDS["noted"] = dataclasses.replace(BACKENDS["gloo"], make=noted, doc="gloo with notes")


# A rule for an architecture: this one notes that it was asked.
class Asked(ArchitectureRule):
    def check(self, config):
        (HERE / f"asked-{config.model_type}").touch()


ARCHITECTURES["qwen2"] = Asked()
"""


def test_one_part_of_each_kind_trains(tmp_path: Path) -> None:
    file = tmp_path / "parts.py"
    file.write_text(PARTS, encoding="utf-8")
    (tmp_path / "my.py").write_text(RAFT, encoding="utf-8")
    finished = run_main(
        [
            *TINY,
            "run.steps=2",
            f"run.dir={tmp_path}/runs",
            f"run.plugins=[{file}]",
            f"algorithm.name=python:{tmp_path}/my.py:RAFT",
            f"algorithm.rollout_clip=python:{file}:keep_all",
            "selection.gate=half",
            "reward.function=even",
            "observe.trackers=[lines]",
            "weight_sync.backend=noted",
        ]
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    folder = RunFolder((tmp_path / "runs" / "latest").resolve())
    lines = folder.read_metrics()
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        kept, left = (line.get(f"selection/reason/{reason}", 0) for reason in ("kept", "left"))
        assert kept + left == 8
        assert kept > 0
        assert 0 < line["reward/mean"] < 1
        assert line["optim/grad_norm"] > 0
        assert line["selection/demo_share"] in (0, None)
        assert line["policy/logprob_gap_max"] < 1e-4
    shown = (folder.root / "lines.txt").read_text().splitlines()
    assert shown == [f"{line['step']} {line['reward/mean']}" for line in lines]
    assert {path.name for path in tmp_path.glob("member-*")} == {"member-0-of-2", "member-1-of-2"}
    assert (tmp_path / "asked-qwen2").exists()
    assert list(tmp_path.glob("graded-*"))
    ranks = OmegaConf.load(folder.config).learner.num_ranks
    assert len(list(tmp_path.glob("masked-*"))) == ranks + 1  # the driver tries it on an example
    assert f"python:{tmp_path}/my.py:RAFT" in folder.config.read_text(encoding="utf-8")
