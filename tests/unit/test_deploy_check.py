"""The entry point of the images, run as it is in a container: in an environment that is empty but for PATH."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORD = "It has become the command"


def check(*words: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "hpt_ray.tools.deploy.check", *words, sys.executable, "-c", f"print({WORD!r})"]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(*words: str, **environment: str) -> str:
    """What it says where something is missing; the command is then not run."""
    finished = check(*words, **environment)
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert WORD not in finished.stdout
    assert "Traceback" not in finished.stderr
    return finished.stderr


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("secret")
    return file


def test_it_says_what_is_there_and_becomes_the_command(tmp_path: Path, token: Path) -> None:
    finished = check(
        *("--shm-gib", "0.01", "--shm", str(tmp_path)),
        HOME=str(tmp_path / "home"),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    names = [line.split(":")[0] for line in finished.stdout.splitlines()]
    assert names == ["shared memory", "open files", "folders", "token", "GPUs", "cluster", WORD]
    assert f"from {token}" in finished.stdout


def test_what_is_missing_is_said_all_at_once(tmp_path: Path, token: Path) -> None:
    (tmp_path / "file").touch()
    token.chmod(0o644)
    said = refused(
        "--shm-gib",
        "1e9",
        HF_HOME=str(tmp_path / "file" / "models"),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
    )
    assert "GiB are asked for (--shm-gib)" in said
    assert f"HF_HOME={tmp_path}/file/models cannot be written" in said
    assert f"chmod 600 {token}" in said
    assert said.count("error: ") == 3


def test_a_token_that_is_not_there_or_empty(tmp_path: Path, token: Path) -> None:
    mode = {"RAY_AUTH_MODE": "token"}
    assert "cannot be read" in refused(**mode, RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    token.write_text("\n")
    assert "is empty" in refused(**mode, RAY_AUTH_TOKEN_PATH=str(token))


def test_gpus_that_are_not_there() -> None:
    """Here for the CPU build of torch; on a machine with GPUs for one GPU too many."""
    assert "GPUs are" in refused("--gpus", "1000")


def test_too_few_open_files() -> None:
    command = f"ulimit -n 1000; exec {sys.executable} -m hpt_ray.tools.deploy.check true"
    finished = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 2
    assert "this process may open 1000 files, 8192 are needed" in finished.stderr


def test_it_says_whom_it_waits_for_and_gives_up() -> None:
    finished = check("--cluster", "http://127.0.0.1:1", "--wait-s", "1")
    assert finished.returncode == 2
    assert "waiting for the job server at http://127.0.0.1:1" in finished.stdout
    assert "no job server answered within 1 s" in finished.stderr


def test_the_wheel_in_a_fresh_environment(tmp_path: Path) -> None:
    """What the image installs has every module: the package alone, beside the dependencies of this environment."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    subprocess.run([*build, "--wheel-dir", str(tmp_path)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("hpt_ray-*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True, timeout=60)
    # This adds the dependencies, and not the editable installation beside them: a path file in a folder that a
    # path file names is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(tmp_path / "venv" / "bin" / "python")
    code = "import hpt_ray; print(hpt_ray.__file__)"
    command = [python, "-P", "-m", "hpt_ray.tools.deploy.check", "--shm-gib", "0", python, "-P", "-c", code]
    finished = subprocess.run(
        command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == str(site / "hpt_ray" / "__init__.py")
    dry = [python, "-P", "-m", "hpt_ray.main", "--config", str(ROOT / "tests/cluster/tiny.yaml"), "--dry-run"]
    finished = subprocess.run(
        dry,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
