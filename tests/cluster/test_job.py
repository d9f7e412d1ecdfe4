"""The same run on a cluster that `ray start --head` has made, sent there by `ray job submit`.

The cluster is on loopback, with a token, ports and a folder of its own; all tests here use one.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import LIMIT_S, ROOT, TINY, child_environment, run_main

from hpt_ray.cluster.network import free_port
from hpt_ray.data.cache import cache_dir
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

RAY = str(Path(sys.executable).with_name("ray"))
HOST = "127.0.0.1"


@dataclass
class Head:
    """The running cluster: its folder, where jobs are sent, and what a client has in its environment."""

    folder: Path
    address: str
    environment: dict[str, str]

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        entry = ["python", "-m", "hpt_ray.main", *words]
        return subprocess.run(
            [
                RAY,
                "job",
                "submit",
                "--address",
                self.address,
                "--working-dir",
                ".",
                "--",
                *entry,
            ],
            cwd=ROOT,
            env=child_environment(**self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: names of sockets are limited
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    home = folder / "home"
    home.mkdir()
    environment = {
        "HOME": str(home),
        "HPT_RAY_CACHE": str(cache_dir()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback alone
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port, dashboard, agent, client = (free_port(HOST) for _ in range(4))
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        f"--node-ip-address={HOST}",
        f"--port={port}",
        "--num-cpus=2",
    ]
    command += [f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    log = folder / "start.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=child_environment(**environment), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), 60, log)
        yield Head(folder, f"http://{HOST}:{dashboard}", environment)
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its children first
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)  # a child may still be writing its last line


def wait_for(condition, limit_s: float, log: Path) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_job_that_succeeds(head, tmp_path):
    job = head.submit(*TINY, "cluster.address=auto", "run.steps=2", f"run.dir={tmp_path}")
    assert job.returncode == 0, job.stdout
    assert "Done: 2 steps" in job.stdout
    assert "succeeded" in job.stdout
    assert [line["step"] for line in RunFolder(tmp_path / "latest").read_metrics()] == [1, 2]
    # It joined the cluster: a second session would have left a folder of its own here.
    assert len(list(head.folder.glob("ray/session_2*"))) == 1
    # What was uploaded is the project: no environment, no history, no earlier runs.
    (package,) = head.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {path.name for path in package.iterdir()}
    assert {"hpt_ray", "configs"} <= names
    assert not {".venv", ".git", "runs"} & names
    assert sum(path.stat().st_size for path in package.rglob("*")) < 10e6


def test_job_with_a_mistake_of_the_user(head, tmp_path):
    job = head.submit(*TINY, f"run.dir={tmp_path}", "run.step=2")
    assert job.returncode == 1  # Ray's own exit code for any job that failed …
    assert "exit code 2" in job.stdout  # … and ours, as Ray shows it
    assert "error: command line: unknown key `run.step`. Did you mean `run.steps`?" in job.stdout
    assert "Traceback" not in job.stdout


def test_no_room_in_a_cluster_says_what_was_asked_and_what_is_there(head, tmp_path):
    words = ["cluster.address=auto", "cluster.placement_timeout_s=2", "rollout.num_workers=9"]
    finished = run_main([*TINY, f"run.dir={tmp_path}", *words], **head.environment)
    assert finished.returncode == 2, finished.stderr
    assert "the cluster made no room within 2 s" in finished.stderr
    assert "9 × rollout with 0.5 CPU each" in finished.stderr
    assert "2 of 2 CPU free, 1 node(s)" in finished.stderr
    assert "held by: no other run" in finished.stderr
    assert "Traceback" not in finished.stderr
