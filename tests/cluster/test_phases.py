"""Phases on the real stack: SFT, then HPT, in one run; ended between the two, struck in the middle of the second.

The first run is made once. Everything else is compared with it, bit for bit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import LIMIT_S, MAIN, ROOT, TINY, child_environment, run_main, write_reward_function
from endings import faults_of, newest, weights
from identical import check_identical
from killer import Fault, Killer

from hpt_ray.data.mini import resolve
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]

BOUNDARY, STEPS = 2, 5
LEARNER = "ray::LearnerWorker"
SFT = "{steps: 2, group_size: 0, algorithm: {name: sft}, learner: {learning_rate: 1.0e-3, schedule: linear}}"
# 8 prompts, one step: each later step sees every prompt again, so its gate has a history.
HPT = (
    "{{steps: 3, algorithm: {{name: hpt}}, selection: {{gate: posterior, gamma: 0.25}}, updates_per_step: 2, "
    "data: {{train: [{eight}]}}}}"
)


def train(*words: str) -> RunFolder:
    finished = run_main([*TINY, *words])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (runs,) = (word.removeprefix("run.dir=") for word in words if word.startswith("run.dir="))
    return newest(Path(runs))


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("material")
    pq.write_table(pq.read_table(resolve("mini:train")).slice(0, 8), folder / "eight.parquet")
    return [
        f"phases=[{SFT}, {HPT.format(eight=folder / 'eight.parquet')}]",
        "run.deterministic=true",
        "checkpoint.every=1",
        "checkpoint.keep=0",
        f"reward.function={write_reward_function(folder)}",
        "learner.zero_stage=2",
    ]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> RunFolder:
    return train(*words, f"run.dir={tmp_path_factory.mktemp('whole')}")


def test_each_phase_trains_by_its_own_settings(whole):
    lines = whole.read_metrics()
    assert [line["phase"] for line in lines] == [1, 1, 2, 2, 2]
    assert [line["optim/lr"] for line in lines] == pytest.approx([1e-3, 1e-4, 5e-4, 5e-4, 5e-4])
    assert [line["reward/mean"] is None for line in lines] == [True, True, False, False, False]
    assert [line["selection/demo_share"] for line in lines[:2]] == [1, 1]
    assert all(0 < line["selection/demo_share"] < 1 for line in lines[2:])
    assert all(line["policy/logprob_gap_max"] < 1e-3 for line in lines[2:])  # the engines had the SFT weights


def test_a_gate_with_a_history_decides_otherwise_at_the_next_attempt(whole):
    attempts = [json.loads(line) for line in (whole.root / "prompt_history.jsonl").read_text().splitlines()]
    weight = {
        (v["step"], v["prompt_id"], v["solved"]): v["demo_weight"] for v in attempts if v["step"] > BOUNDARY
    }
    again = [
        (weight[step, name, solved], weight[step + 1, name, solved])
        for step, name, solved in weight
        if solved < 4 and (step + 1, name, solved) in weight
    ]
    assert again, "no prompt came to the same twice: this run says nothing"
    assert all(first != second for first, second in again)


def test_ended_at_the_boundary_and_struck_in_the_second_phase_it_is_the_same_run(words, whole, tmp_path):
    """Continued from a copy of its folder as it was after phase 1; its learner dies in the fourth step."""
    broken = RunFolder(tmp_path / whole.root.name)
    shutil.copytree(whole.root, broken.root)
    for step in range(BOUNDARY + 1, STEPS + 1):
        shutil.rmtree(broken.checkpoints / f"step-{step:06d}")
    kept = [line for line in broken.read_metrics() if line["step"] <= BOUNDARY]
    broken.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
    process = subprocess.Popen(
        [*MAIN, *TINY, *words, f"run.dir={tmp_path}", f"resume={broken.root}"],
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killer = Killer(process.pid, tmp_path, [Fault(3, LEARNER, during=f"{LEARNER}.accumulate")], seed=7)
    (tmp_path / "latest").symlink_to(broken.root.name)
    killer.start()
    try:
        printed, _ = process.communicate(timeout=300)  # it starts twice
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert f"Continuing from step {BOUNDARY}" in printed
    assert killer.killed == [LEARNER]
    assert faults_of(broken)["learner_restarted"] == 1
    check_identical(broken, whole, STEPS)


def test_the_first_step_of_a_phase_is_replayed_from_the_end_of_the_one_before(whole):
    finished = subprocess.run(
        [sys.executable, "-m", "hpt_ray.cli.replay", str(whole.root), f"step={BOUNDARY + 1}"],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"from step-{BOUNDARY:06d}" in finished.stdout
    assert f"Step {BOUNDARY + 1}: the same " in finished.stdout


def test_a_phase_is_a_run_from_the_weights_of_the_phase_before(tmp_path):
    """SFT twice, at another rate: optimizer state, schedule and order of prompts begin again."""
    second = "{steps: 2, learner: {learning_rate: 2.0e-3, warmup_steps: 2}}"
    common = ("run.deterministic=true", "checkpoint.every=1", "checkpoint.keep=0", "learner.num_ranks=2",
              "learner.zero_stage=3", "algorithm.name=sft", "group_size=0")  # fmt: skip
    both = train(*common, f"phases=[{{steps: 2}}, {second}]", f"run.dir={tmp_path / 'both'}")
    start = both.checkpoints / "step-000002" / "hf"
    alone = train(
        *common,
        f"model.path={start}",
        "run.steps=2",
        "learner.learning_rate=2.0e-3",
        "learner.warmup_steps=2",
        f"run.dir={tmp_path / 'alone'}",
    )
    assert weights(both, 4).equal(weights(alone, 2))
    assert not weights(both, 4).equal(weights(both, 2))
