"""The loss of a node with all that runs on it: raylet, actors, everything ends, or stands still, at the same moment."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from command import MAIN, ROOT, TINY, child_environment, run_main
from endings import check, faults_of, newest
from killer import steps_done
from nodes import Nodes, cluster, lose, silence, wait_for

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trace import read_trace

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(600)]

LIMIT_S = 400
HEAD_CPUS, SECOND_CPUS = (
    3,
    2,
)  # two small actors and a large one fit on the head; the other large one does not
LARGE_ROLLOUT = ["rollout.num_cpus=2", "learner.num_cpus=0.5"]
LARGE_LEARNER = ["rollout.num_cpus=0.5", "learner.num_cpus=2"]

# As `write_reward_function`, and as slow as the file beside it says: a run can be made to wait for a node to join.
REWARD = """
import pathlib, time

def grade(response, ground_truth):
    time.sleep(float(pathlib.Path(__file__).with_name("pause").read_text()))
    return len(response) % 2 == 0
"""


@pytest.fixture(scope="module")
def reward_function(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("reward_function") / "parity.py"
    file.write_text(REWARD)
    pace(file, 0.0)
    return file


def pace(reward_function: Path, pause_s: float) -> None:
    reward_function.with_name("pause").write_text(f"{pause_s}")


@pytest.fixture(scope="module")
def words(reward_function) -> list[str]:
    return [
        "run.steps=16",
        "run.deterministic=true",
        "checkpoint.every=3",
        f"reward.function=python:{reward_function}:grade",
        "rollout.num_workers=2",
        "learner.num_ranks=2",
        "learner.zero_stage=2",
    ]


@pytest.fixture(scope="module")
def undisturbed(words, tmp_path_factory) -> RunFolder:
    runs = tmp_path_factory.mktemp("undisturbed")
    finished = run_main([*TINY, *words, f"run.dir={runs}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return newest(runs)


@contextmanager
def running(nodes: Nodes, words: list[str], runs: Path) -> Iterator[subprocess.Popen[str]]:
    """A run on the cluster."""
    process = subprocess.Popen(
        [*MAIN, *TINY, *words, f"run.dir={runs}", f"cluster.address={nodes.address}"],
        cwd=ROOT,
        env=child_environment(**nodes.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()


def wait_for_step(process: subprocess.Popen[str], runs: Path, step: int) -> None:
    wait_for(lambda: process.poll() is not None or steps_done(runs) >= step, LIMIT_S)
    assert process.poll() is None, process.communicate()[0]


def test_the_run_goes_on_without_a_node_of_rollout_workers_and_takes_in_its_successor(
    words, reward_function, undisturbed, tmp_path
):
    pace(reward_function, 0.2)
    with cluster(HEAD_CPUS) as nodes, running(nodes, [*words, *LARGE_ROLLOUT], tmp_path) as process:
        second = nodes.join(SECOND_CPUS)  # the run waits for it
        wait_for_step(process, tmp_path, 2)
        lose(second)
        wait_for_step(process, tmp_path, 4)
        folder = newest(tmp_path)
        log = folder.logs / "rollout-1.log"
        pace(reward_function, 1.5)
        size, joined_s = log.stat().st_size, time.time()
        nodes.join(SECOND_CPUS)
        wait_for(lambda: process.poll() is not None or log.stat().st_size > size, LIMIT_S)
        pace(reward_function, 0.3)
        wait_for(lambda: process.poll() is not None or generated(folder, "rollout-1", joined_s), LIMIT_S)
        pace(reward_function, 0.0)
        printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, printed
    assert generated(folder, "rollout-1", joined_s), printed
    check(folder, undisturbed, exactly=False)
    assert faults_of(folder)["rollouts_requeued"] > 0
    assert "learner_restarted" not in faults_of(folder)


def generated(folder: RunFolder, worker: str, since_s: float) -> bool:
    spans = read_trace(folder.trace)
    return any(s.actor == worker and s.name == "generate" and s.start_s > since_s for s in spans)


def test_ranks_of_a_lost_node_start_elsewhere_and_without_room_the_run_ends_and_resumes(tmp_path):
    """Without rollouts, so that nothing but ranks has to come up again and again.

    The first node falls silent with all its connections open, the second is gone at once.
    """
    words = [
        "algorithm.name=sft",
        "group_size=0",
        "run.steps=150",
        "run.deterministic=true",
        "checkpoint.every=20",
        "checkpoint.in_memory_every=1",
        "learner.num_ranks=2",
        "learner.num_cpus=1",
        "learner.zero_stage=2",
        "cluster.placement_timeout_s=60",
        "resume=auto",
    ]
    undisturbed, runs = tmp_path / "undisturbed", tmp_path / "disturbed"
    with cluster(1) as nodes:
        others = [nodes.join(1), nodes.join(1)]  # of the three nodes two have a rank
        with running(nodes, words, undisturbed) as process:
            printed, _ = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, printed
        with running(nodes, words, runs) as process:
            wait_for_step(process, runs, 4)
            silent = next(node for node in others if has_rank(node))
            silence(silent)
            wait_for_step(process, runs, steps_done(runs) + 4)  # none is done without all ranks
            lose(silent)
            lose(next(node for node in others if has_rank(node)))
            printed, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 2, printed
        assert "did not finish 'find a place again' within 60 s" in " ".join(printed.split())
        assert "2 × learner with 1 CPU each" in printed
        nodes.join(1)
        with running(nodes, words, runs) as process:
            printed, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, printed
    check(newest(runs), newest(undisturbed), exactly=True)


def has_rank(node: psutil.Popen) -> bool:
    if not node.is_running():
        return False
    return any(" ".join(p.cmdline()).startswith("ray::LearnerWorker") for p in node.children(recursive=True))
