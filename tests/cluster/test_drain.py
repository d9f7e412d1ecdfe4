"""The end of a head's pod: a running job gets SIGTERM, has its time, and the hook waits for it. And the end of a
RayJob that would end the same way again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import LIMIT_S, ROOT, child_environment
from nodes import HOST, RAY, cluster, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

# Takes a while to save, as a run does.
JOB = "import pathlib, signal, sys, time; started, saved = map(pathlib.Path, sys.argv[1:]); \
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(5), saved.touch(), sys.exit(143))); \
started.touch(); time.sleep(600)"


def test_a_job_saves_before_its_head_ends(tmp_path: Path) -> None:
    started, saved = tmp_path / "started", tmp_path / "saved"
    script = tmp_path / "job.py"
    script.write_text(JOB.replace("; ", "\n"), encoding="utf-8")
    with cluster(1) as nodes:
        environment = child_environment(**nodes.environment)
        server = f"http://{HOST}:{nodes.dashboard}"
        wait = ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}']
        command = [RAY, "job", "submit", "--address", server, "--no-wait", *wait, "--", sys.executable]
        subprocess.run(
            [*command, str(script), str(started), str(saved)], env=environment, check=True, timeout=LIMIT_S
        )
        wait_for(started.exists, LIMIT_S)
        drain = [
            sys.executable,
            "-m",
            "hpt_ray.tools.deploy",
            "drain",
            "--job-server",
            server,
            "--timeout",
            "60",
        ]
        done = subprocess.run(drain, env=environment, cwd=ROOT, timeout=LIMIT_S)
        assert saved.exists()
        assert done.returncode == 0


def test_a_users_mistake_counts_as_stopped(tmp_path: Path) -> None:
    """Of a job that failed, KubeRay makes another attempt, whatever its exit code."""
    with cluster(1) as nodes:
        server = f"http://{HOST}:{nodes.dashboard}"
        attempt = [sys.executable, "-m", "hpt_ray.tools.deploy", "attempt", "--job-server", server]
        done = subprocess.run(
            [
                RAY,
                "job",
                "submit",
                "--address",
                server,
                "--",
                *attempt,
                "--config",
                str(tmp_path / "no.yaml"),
            ],
            env=child_environment(**nodes.environment),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
    assert "error: " in done.stdout
    assert "Not tried again" in done.stdout
    assert "was stopped" in done.stdout, done.stdout
