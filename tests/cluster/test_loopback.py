"""A local run keeps to itself: no socket of any of its processes names another address than loopback.

The sockets are read from the kernel's tables while the run goes on, from its first process to its last.
"""

import contextlib
import ipaddress
import json
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
from command import LIMIT_S, MAIN, ROOT, TINY, child_environment, write_reward_function

from hpt_ray.utils.cache import cache_dir

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(180)]


@pytest.fixture
def ray_folder():
    """A short path for Ray's session: its sockets live there, and their names are limited in length."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def processes_of(run: psutil.Process, ray_folder: Path) -> dict[int, str]:
    """Id and name of the run, of what descends from it, and of what serves its Ray session otherwise."""
    found = {process.pid: process for process in [run, *run.children(recursive=True)]}
    for process in psutil.process_iter(["cmdline"]):
        if any(str(ray_folder) in word for word in process.info["cmdline"] or []):
            found[process.pid] = process
    names = {}
    for pid, process in found.items():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
            names[pid] = process.name()
    return names


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.is_file() else 0


def test_every_socket_of_a_local_run_is_on_loopback(tmp_path, ray_folder):
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    arguments = ["rollout.num_workers=2", "learner.num_ranks=2", "learner.zero_stage=3", "run.steps=4"]
    environment = child_environment(
        HOME=str(home), TMPDIR=str(temporary), HPT_RAY_CACHE=str(cache_dir()), RAY_TMPDIR=str(ray_folder)
    )
    run = psutil.Popen(
        [
            *MAIN,
            *TINY,
            *arguments,
            f"run.dir={tmp_path}/runs",
            f"reward.function={write_reward_function(tmp_path)}",
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = tmp_path / "runs" / "latest" / "metrics.jsonl"
    seen = defaultdict(set)  # (address, status) -> programs
    steps_seen = set()  # how many steps were done when a look was taken
    deadline = time.monotonic() + LIMIT_S
    try:
        while run.poll() is None:
            assert time.monotonic() < deadline, "the run did not end"
            steps_seen.add(count_lines(metrics))
            programs = processes_of(run, ray_folder)
            for socket in psutil.net_connections(kind="inet"):
                if socket.pid in programs:
                    for end in filter(None, (socket.laddr, socket.raddr)):
                        seen[end.ip, socket.status].add(programs[socket.pid])
            time.sleep(0.1)
    finally:
        if run.poll() is None:
            run.terminate()
        output, _ = run.communicate(timeout=30)

    assert run.returncode == 0, output
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4]
    assert steps_seen & {1, 2, 3}, "no look was taken while the run was training"
    programs = set().union(*seen.values())
    assert {"raylet", "gcs_server"} <= programs, f"the look missed Ray itself: {programs}"
    assert any("LearnerWorker" in program for program in programs), programs
    assert any("RolloutWorker" in program for program in programs), programs
    elsewhere = {end: names for end, names in seen.items() if not is_loopback(end[0])}
    assert not elsewhere
    assert any(status == psutil.CONN_LISTEN for _, status in seen)
    assert not (home / ".ray").exists(), "a token was left in the user's home"
    assert not list(temporary.glob("hpt_ray-*")), "the token of this run was left behind"
