"""`python -m hpt_ray.cli.replay` as a person runs it, on runs of a few steps: HPT with both streams, and SFT."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import LIMIT_S, ROOT, TINY, child_environment, run_main, write_reward_function

from hpt_ray.observe.rollout_dump import SCHEMA, dump_of, read_rollouts
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


def train(folder: Path, *words: str) -> RunFolder:
    finished = run_main([*TINY, *words, f"run.dir={folder}", "run.steps=3"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return RunFolder((folder / "latest").resolve())


def replay(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpt_ray.cli.replay", str(folder), *words],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture(scope="module")
def hpt(tmp_path_factory) -> RunFolder:
    """Two updates a step, two ranks, checkpoints of steps 2 and 3; rows are rehearsed, of which no dump tells."""
    reward_function = write_reward_function(tmp_path_factory.mktemp("reward_function"))
    run = train(
        tmp_path_factory.mktemp("runs"),
        f"reward.function={reward_function}",
        "rollout.num_workers=1",
        "learner.num_ranks=2",
        "updates_per_step=2",
        "data.rehearsal=[mini:train-step]",
        "data.rehearsal_per_step=4",
        "checkpoint.every=2",
        "learner.warmup_steps=4",
    )
    branches = {line["branch"] for step in (1, 2, 3) for line in read_rollouts(dump_of(run.rollouts, step))}
    assert branches == {"rollouts", "demonstration"}  # otherwise the tests below would say little
    return run


@contextmanager
def altered(path: Path, lines: list[dict]) -> Iterator[None]:
    """The dump holds `lines`, for a while."""
    before = path.read_bytes()
    pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), path)
    yield
    path.write_bytes(before)


@pytest.mark.parametrize(
    ("step", "origin", "passed"), [(2, "the initial model", [1, 2]), (3, "step-000002", [3])]
)
def test_a_step_comes_out_the_same_from_the_checkpoint_before_it(hpt, step, origin, passed):
    checkpoints = sorted(path.name for path in hpt.checkpoints.iterdir())
    metrics = hpt.metrics.read_bytes()
    finished = replay(hpt.root, f"step={step}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"from {origin}" in finished.stdout
    results = [line for line in finished.stdout.splitlines() if ": the same " in line]
    assert [line.split(":")[0] for line in results] == [f"Step {number}" for number in passed]
    assert "optim/grad_norm" in finished.stdout
    assert {"learner/demo_loss", "learner/rehearsal_loss"} <= {*finished.stdout.split()}
    assert sorted(path.name for path in hpt.checkpoints.iterdir()) == checkpoints
    assert hpt.metrics.read_bytes() == metrics


def test_one_altered_log_prob_is_noticed(hpt):
    path = dump_of(hpt.rollouts, 3)
    lines = read_rollouts(path)
    per_step = max(line["group"] for line in lines) + 1
    # One that has a gradient: its prompt trains on rollouts, some of them right; in the last update.
    line = next(
        x
        for x in lines
        if x["rollout_weight"] and 0 < x["num_correct"] < x["num_rollouts"] and x["group"] >= per_step // 2
    )
    line["logprobs"][0] -= 0.1
    with altered(path, lines):
        finished = replay(hpt.root, "step=3")
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "Step 3: not the same: " in finished.stdout


def test_a_missing_dump_is_named_with_the_steps_that_can_be_replayed(hpt):
    path = dump_of(hpt.rollouts, 1)
    aside = path.rename(path.with_suffix(".aside"))
    finished = replay(hpt.root, "step=2")
    aside.rename(path)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert (
        "step-000001.parquet is missing. A replay of step 2 starts from the initial model" in finished.stderr
    )
    assert finished.stderr.endswith("Steps that can be replayed: 3.\n")


@pytest.mark.long
def test_a_supervised_step_comes_out_the_same(tmp_path):
    run = train(tmp_path, "algorithm.name=sft", "group_size=0")
    finished = replay(run.root, "step=3")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for step in (1, 2, 3):
        assert f"Step {step}: the same " in finished.stdout


@pytest.mark.long
def test_a_critic_is_replayed_too(tmp_path):
    run = train(
        tmp_path / "runs",
        f"reward.function={write_reward_function(tmp_path)}",
        "algorithm.name=ppo",
        "algorithm.kl_coef=0.01",
        "algorithm.kl_in=reward",
        "rollout.num_workers=1",
        "critic.num_cpus=0.5",
        "reference.num_cpus=0.5",
        "checkpoint.every=2",
    )
    finished = replay(run.root, "step=3")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "from step-000002" in finished.stdout
    assert "critic/grad_norm" in finished.stdout
    assert "Step 3: the same " in finished.stdout
