"""What another user of the machine can reach of a local Ray: tried as one, with another user id."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from command import ROOT, child_environment

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
