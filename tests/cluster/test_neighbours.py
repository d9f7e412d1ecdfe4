"""What another user of the machine can reach of a local Ray: tried as one, with another user id."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from command import LIMIT_S, MAIN, ROOT, TINY, child_environment, write_reward_function

from hpt_ray.cluster.private_folder import session_folder

NOBODY = 65534
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]


def seen_by_another(folder: Path) -> list[str]:
    """What another user can name of `folder` and below it."""
    words = ["find", str(folder)]
    found = subprocess.run(words, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True)
    return found.stdout.decode().split()


@pytest.fixture
def short(tmp_path_factory):
    """A folder in /tmp that everybody may enter, with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


# A process of its own, since this one may have a Ray already. It says where, and ends with its input.
LOCAL_RAY = """
import sys
import ray
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import ClusterConfig
cluster = Cluster.connect(ClusterConfig(address="local"))
print("session", ray._private.worker._global_node.get_session_dir_path(), flush=True)
sys.stdin.read()
cluster.close()
"""


@pytest.mark.timeout(180)
def test_another_user_sees_nothing_of_a_local_ray(short):
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL_RAY],
        cwd=ROOT,
        env=child_environment(RAY_TMPDIR=str(short)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        session = next(Path(line.split()[1]) for line in process.stdout if line.startswith("session "))
        assert session.is_relative_to(short)
        assert list(session.glob("sockets/*"))
        assert list(session.glob("logs/*"))
        assert stat.S_IMODE((short / f"ray-{os.getuid()}").stat().st_mode) == 0o700
        assert seen_by_another(short) == [str(short), str(short / f"ray-{os.getuid()}")]  # and nothing in it
        assert seen_by_another(session) == []
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_folder_that_another_user_has_made_is_not_used(short, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    planted = short / f"ray-{os.getuid()}"
    planted.mkdir()
    os.chown(planted, NOBODY, NOBODY)
    ours = session_folder().parent
    assert ours != planted
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    assert ours.stat().st_uid == os.getuid()


def test_a_link_that_another_user_has_made_is_not_followed(short, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    (short / f"ray-{os.getuid()}").symlink_to(tmp_path)
    assert session_folder().parent.parent == short
    assert not session_folder().is_relative_to(short / f"ray-{os.getuid()}")


def test_a_folder_of_ones_own_is_closed_again(short, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    (short / f"ray-{os.getuid()}").mkdir(mode=0o755)
    assert session_folder() == short / f"ray-{os.getuid()}" / "r"
    assert stat.S_IMODE((short / f"ray-{os.getuid()}").stat().st_mode) == 0o700


# Another user who tries every port and every meeting of a run, and says what let him in: as a member of a group, or as
# who has Ray prepare an environment.
STRANGER = """
import encodings.idna, http.client, os, sys, threading, time, urllib.request  # while this user may read them
from datetime import timedelta
import psutil
import torch.distributed as dist
run = psutil.Process(int(sys.argv[1]))
pids = {process.pid for process in [run, *run.children(recursive=True)]}
pids |= {p.pid for p in psutil.process_iter(["cmdline"]) if any(sys.argv[2] in w for w in p.info["cmdline"] or [])}
pids.remove(os.getpid())
sockets = [socket for socket in psutil.net_connections("inet") if socket.pid in pids]
ports = sorted({socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN})
files = [f"/proc/{pid}/fd/{fd}" for pid in pids for fd in os.listdir(f"/proc/{pid}/fd")]
files = [file for file in files if os.path.lexists(file) and os.readlink(file).startswith("/memfd:rendezvous")]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
def join(port):
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=1))
        print("joined", port, store.list_keys())
    except RuntimeError:
        pass
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/get_or_create_runtime_env", b"", timeout=1)
        print("asked", port)
    except (OSError, http.client.HTTPException):
        pass
threads = [threading.Thread(target=join, args=(port,), daemon=True) for port in ports]
for thread in threads:
    thread.start()
deadline = time.monotonic() + 10  # TCPStore waits for ever where somebody else listens
for thread in threads:
    thread.join(max(0.0, deadline - time.monotonic()))
for file in files:
    try:
        print("read", file, open(file, "rb").read())
    except PermissionError:
        pass
print("tried", len(ports), len(files), flush=True)
os._exit(0)
"""


@pytest.mark.long
@pytest.mark.timeout(500)
def test_another_user_joins_no_group_of_a_run(short):
    """Tried from the second step on, when ranks and engines have met; the run does not mind."""
    arguments = [
        *TINY,
        "rollout.num_workers=2",
        "learner.num_ranks=2",
        "run.steps=1000",
        f"run.dir={short}/runs",
    ]
    run = subprocess.Popen(
        [*MAIN, *arguments, f"reward.function={write_reward_function(short)}"],
        cwd=ROOT,
        env=child_environment(RAY_TMPDIR=str(short)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = short / "runs" / "latest" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 2 * LIMIT_S  # of a start on a busy machine
        while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        words = [sys.executable, "-c", STRANGER, str(run.pid), str(short)]
        tried = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
        assert run.poll() is None, "the run ended before everything was tried"
    finally:
        run.terminate()  # after the step under way
        output, _ = run.communicate(timeout=60)
    assert run.returncode == 143, output
    assert tried.returncode == 0, tried.stderr
    *found, counts = tried.stdout.splitlines()
    assert not found, tried.stdout
    ports, files = map(int, counts.split()[1:])
    assert ports > 10
    assert files == 2  # the ranks' and the weight sync's
