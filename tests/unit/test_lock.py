"""One writer for a folder, whatever becomes of it; and a driver that waits for the one before."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest
from rich.console import Console

from hpt_ray import main
from hpt_ray.cli import train
from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.suite.__main__ import holding as holding_suite
from hpt_ray.utils.lock import alone

HOLD = """
import pathlib, sys, time
from hpt_ray.utils.lock import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds `tmp_path`."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_folder_has_one_writer_until_that_is_gone(tmp_path: Path, holder: subprocess.Popen) -> None:
    with pytest.raises(TimeoutError), alone(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(2):
        with alone(tmp_path):
            pass


def test_a_second_driver_says_that_it_waits_and_goes_on(
    tmp_path: Path, holder: subprocess.Popen, capsys: pytest.CaptureFixture[str]
) -> None:
    Timer(1.0, holder.terminate).start()
    with train.holding(RunFolder(tmp_path), Console()):
        assert holder.wait(10) == -signal.SIGTERM
    said = capsys.readouterr().out
    assert said.count(f"Another process trains in {tmp_path}. Waiting for its end, at most 15 minutes.") == 1


def test_a_second_driver_gives_up(
    tmp_path: Path, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "HANDOVER_S", 1.0)
    with (
        pytest.raises(UserError, match="two would destroy it"),
        train.holding(RunFolder(tmp_path), Console()),
    ):
        pass
    assert holder.poll() is None


def test_a_suite_is_carried_out_once(tmp_path: Path, holder: subprocess.Popen) -> None:
    with pytest.raises(UserError, match="carries out a suite"), holding_suite(tmp_path):
        pass
    assert holder.poll() is None


def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("hpt_ray.utils.lock.fcntl.flock", no_locks)
    with alone(tmp_path):
        pass
    assert "cannot be locked ([Errno 95]" in caplog.text


def test_nothing_of_a_run_is_touched_before_it_is_held(
    tmp_path: Path,
    holder: subprocess.Popen,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: other}\n")
    monkeypatch.setattr(train, "HANDOVER_S", 0.0)
    assert main.main([f"resume={tmp_path}"]) == 2
    assert f"error: Another process trains in {tmp_path}" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "run: {name: other}\n"
    assert holder.poll() is None
