"""What a run survives: real processes, ended with kill -9 at moments drawn from a fixed seed.

After each: the run ends well, the metrics hold every step once, no prompt is lost or counted twice, and the
parameters are those of the run that nobody disturbed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from command import MAIN, ROOT, TINY, child_environment, left_of, run_main, write_reward_function
from endings import check, faults_of, newest
from killer import Fault, Killer, steps_done
from nodes import wait_for

from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]

STEPS = 16
LIMIT_S = 300

ENGINE, LEARNER, REFERENCE = "ray::RolloutWorker", "ray::LearnerWorker", "ray::ReferenceWorker"
REPLICA = "ray::StateReplica"
VERIFIER, REWARD = "ray::Verifier", "hpt_ray.reward.pool"
# As `write_reward_function`; it says when it is held, which it is as long as there is `hold` beside it.
HELD_REWARD = """
import pathlib, time

def grade(response, ground_truth):
    hold = pathlib.Path(__file__).with_name("hold")
    while hold.exists():
        hold.with_name("held").touch()
        time.sleep(0.05)
    return len(response) % 2 == 0
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    return [
        f"run.steps={STEPS}",
        "run.deterministic=true",
        "checkpoint.every=3",
        f"reward.function={write_reward_function(tmp_path_factory.mktemp('reward_function'))}",
        "rollout.num_workers=2",
        "learner.num_ranks=2",
        "learner.zero_stage=2",
        "algorithm.kl_coef=0.01",
        "reference.num_cpus=0",
    ]


@pytest.fixture(scope="module")
def undisturbed(words, tmp_path_factory) -> RunFolder:
    runs = tmp_path_factory.mktemp("undisturbed")
    finished = run_main([*TINY, *words, f"run.dir={runs}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return newest(runs)


def start(words: list[str], runs: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*MAIN, *TINY, *words, f"run.dir={runs}"],
        cwd=ROOT,
        env=child_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def survive(words: list[str], runs: Path, faults: list[Fault], **environment: str) -> RunFolder:
    """The folder of a run to which `faults` happened and which ended well."""
    began_s = time.monotonic()
    process = start(words, runs, **environment)
    killer = Killer(process.pid, runs, faults, seed=7)
    killer.start()
    try:
        printed, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert killer.killed == [fault.victim for fault in faults], printed
    (runs / "printed").write_text(printed)
    folder = newest(runs)
    # What was computed twice took its time once.
    assert json.loads((folder.root / "summary.json").read_text())["wall_s"] < time.monotonic() - began_s
    return folder


def test_engines_and_reward_functions_die(words, undisturbed, tmp_path):
    folder = survive(
        words,
        tmp_path,
        [
            Fault(1, ENGINE),  # in generation
            Fault(2, ENGINE, during=f"{LEARNER}.send_weights"),  # in the middle of a weight sync
            Fault(3, REWARD),
            Fault(4, VERIFIER),
        ],
    )
    check(folder, undisturbed, exactly=False)
    assert faults_of(folder)["rollout_failed"] == 2
    assert faults_of(folder)["rollout_restarted"] >= 1


def test_learner_ranks_and_the_reference_die(words, undisturbed, tmp_path):
    folder = survive(
        words,
        tmp_path,
        [
            Fault(1, LEARNER, during=f"{LEARNER}.accumulate"),  # in backward, before the first checkpoint
            Fault(4, LEARNER, during=f"{LEARNER}.step"),  # in the optimizer step
            Fault(5, REFERENCE),
        ],
    )
    check(folder, undisturbed, exactly=True)
    assert faults_of(folder)["learner_restarted"] == 2


def test_a_lost_rank_is_replaced_while_rollouts_of_the_step_are_still_missing(words, undisturbed, tmp_path):
    file, hold, held = (tmp_path / name for name in ("held.py", "hold", "held"))
    file.write_text(HELD_REWARD)
    words = [*words, f"reward.function=python:{file}:grade", f"reward.timeout_s={LIMIT_S / 2:.0f}"]
    process = start(words, tmp_path)
    try:
        wait_for(lambda: steps_done(tmp_path) >= 1, LIMIT_S)
        hold.touch()
        wait_for(held.exists, LIMIT_S)
        Killer(process.pid, tmp_path, [Fault(1, LEARNER)], seed=7).start()
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if "starting again" in line:
                hold.unlink()
    finally:
        process.kill()
    assert process.wait() == 0, printed
    check(newest(tmp_path), undisturbed, exactly=True)


def test_learner_ranks_go_on_from_the_copy_in_memory(words, undisturbed, tmp_path):
    """No checkpoint but the last: without the copy all of it would be computed again."""
    folder = survive(
        [*words, "checkpoint.every=0", "checkpoint.in_memory_every=1", "learner.max_restarts=1"],
        tmp_path,
        [
            Fault(3, LEARNER, during=f"{LEARNER}.accumulate"),
            Fault(6, REPLICA),
            Fault(12, LEARNER, during=f"{LEARNER}.step"),  # when the lost copy has a successor
        ],
    )
    check(folder, undisturbed, exactly=True)
    assert faults_of(folder)["learner_restarted"] == 2
    assert faults_of(folder)["checkpoint_in_memory"] >= 1  # of a copy that lost its place
    printed = " ".join((tmp_path / "printed").read_text().split())
    assert printed.count("(the copy in memory)") == 2, printed


def test_frozen_processes_are_replaced(words, undisturbed, tmp_path):
    folder = survive(
        words,
        tmp_path,
        [
            Fault(1, LEARNER, during=f"{LEARNER}.accumulate", signal=signal.SIGSTOP),
            Fault(4, ENGINE, during=f"{LEARNER}.send_weights", signal=signal.SIGSTOP),
        ],
        # Ray pings its peers; a local cluster has this from the driver.
        RAY_grpc_client_keepalive_time_ms="10000",
        RAY_grpc_client_keepalive_timeout_ms="10000",
    )
    check(folder, undisturbed, exactly=False)
    assert faults_of(folder)["learner_restarted"] == 1
    assert faults_of(folder)["rollout_failed"] == 1


def test_the_driver_dies_and_is_asked_to_stop(words, undisturbed, tmp_path):
    process = start(words, tmp_path)
    wait_for_step(process, tmp_path, 4)
    started_here = psutil.Process(process.pid).children(recursive=True)
    assert len(started_here) > 5
    process.kill()
    process.communicate()
    # Ray's agents wait a minute for a head that hears their last word.
    assert not left_of(started_here, within_s=150), "Ray ends with the driver"
    process = start([*words, "resume=auto"], tmp_path)
    wait_for_step(process, tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143, printed
    assert "resume=auto" in printed
    finished = run_main([*TINY, *words, f"run.dir={tmp_path}", "resume=auto"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    check(newest(tmp_path), undisturbed, exactly=True)


def wait_for_step(process: subprocess.Popen[str], runs: Path, step: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while steps_done(runs) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_whose_updates_are_all_skipped_ends_with_its_rows(words, tmp_path):
    skipping = ["learner.skip_grad_norm=1.0e-9", "learner.max_skipped_updates=1", "observe.rollouts_every=0"]
    finished = run_main([*TINY, *words, *skipping, f"run.dir={tmp_path}"])
    assert finished.returncode == 1
    assert "2 updates in a row were skipped" in finished.stderr
    folder = newest(tmp_path)
    assert [line["learner/skipped_updates"] for line in folder.read_metrics()] == [1, 1]
    assert [path.name for path in folder.rollouts.iterdir()] == ["step-000002.parquet"]
