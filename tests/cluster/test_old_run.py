"""A run that version 0.1 began: today's code goes on with it, and its numbers come out as version 0.1 had them.

The fixture holds the checkpoint of step 2, and the lines and rollouts of all four steps as version 0.1 computed
them. Another machine's arithmetic may differ in the last digits, so numbers are compared to 1e-5.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import REPLAY, ROOT, run_main
from identical import numbers

from hpt_ray.config import renamed
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
OLD = RunFolder(FIXTURES / "run-0.1")

# What that run was made with, under today's names.
WORDS = [
    "--config",
    str(ROOT / "configs" / "quickstart.yaml"),
    "run.steps=4",
    "run.deterministic=true",
    "model.path=model-0.1",
    "prompts_per_step=4",
    "group_size=4",
    "max_tokens_per_micro_batch=1024",
    "updates_per_step=2",
    "checkpoint.every=2",
    "checkpoint.keep=0",
    "selection.gate=posterior",
    "selection.gamma=0.4",
    "learner.warmup_steps=0",
    "rollout.max_off_policy_steps=1",
    "reward.function=python:parity.py:even",
    "reward.require_finished=false",
    "evaluation.every=0",
    "evaluation.sets={}",
    "algorithm.rollout_denominator=old",
    "algorithm.rollout_clip=ppo",
    "algorithm.rollout_loss_aggregation=seq-mean-token-mean",
]


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    """A copy of the run, in a folder that holds its model and its reward function by the names it knows."""
    for name in ("run-0.1", "model-0.1"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    shutil.copy(FIXTURES / "parity.py", tmp_path)
    return RunFolder(tmp_path / "run-0.1")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_it_goes_on_as_version_0_1_went_on(old):
    before = contents(old.root)
    finished = run_main([*WORDS, f"resume={old.root.name}"], cwd=old.root.parent)
    assert finished.returncode == 0, finished.stdout + finished.stderr

    expected, found = numbers(OLD), numbers(old)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert found[:2] == expected[:2]
    for theirs, ours in zip(expected[2:], found[2:], strict=True):
        assert theirs.keys() <= ours.keys()
        for name, value in theirs.items():
            # The smallest, such as the gap between sampler and learner, are differences of rounded numbers.
            same = pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value
            assert ours[name] == same, f"step {ours['step']}: {name}"
        assert ours["learner/skipped_samples"] == 4
        assert ours["rollout/off_policy_steps/1"] == 16

    history = (old.root / "prompt_history.jsonl").read_text(encoding="utf-8").splitlines()
    old_history = before["feedback.jsonl"].decode().splitlines()
    assert [json.loads(line) for line in history] == [
        renamed.fields(json.loads(line)) for line in old_history
    ]
    assert {json.loads(line)["step"] for line in history} == {1, 2, 3, 4}

    after = contents(old.root)
    assert after.pop("config-1.yaml") == before.pop("config.yaml")
    renewed = {
        "metrics.jsonl",
        "summary.json",
        "rollouts/step-000003.parquet",
        "rollouts/step-000004.parquet",
    }
    kept = before.keys() - renewed
    assert "checkpoints/step-000002/state.json" in kept
    assert {name for name in kept if before[name] != after.get(name)} == set()
    assert "checkpoints/step-000004/learner/random-0.json" in after


def test_a_step_of_it_has_the_same_gradient_today(old):
    finished = run_main([old.root.name, "step=2"], command=REPLAY, cwd=old.root.parent)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "from the initial model" in finished.stdout
    results = [line for line in finished.stdout.splitlines() if ": the same " in line]
    assert [line.split(":")[0] for line in results] == ["Step 1", "Step 2"]
    assert "optim/grad_norm" in finished.stdout
