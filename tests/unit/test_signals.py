"""What a command does at SIGINT, SIGTERM and SIGHUP before, while and after it has something to save.

Real processes.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hpt_ray import main
from hpt_ray.utils import signals
from hpt_ray.utils.command import this_command

ROOT = Path(__file__).resolve().parents[2]
INT, TERM = signal.SIGINT, signal.SIGTERM
LIMIT_S = 60
# Answers a signal by ending in an orderly way, or by taking its time.
ANSWERING = """
import subprocess, sys, time
from hpt_ray.utils import signals
signals.watch()
child = subprocess.Popen(["sleep", "100"], start_new_session=True)
signals.at_end(lambda: open("removed", "a").write("removed "))
asked = []
if "saves" in sys.argv:
    with signals.answered_by(lambda: asked.append(1), lambda: "Steps 3 to 5 are lost."):
        print(child.pid, flush=True)
        while not asked or "slowly" in sys.argv:
            time.sleep(0.01)
        time.sleep(0.3)
    child.kill()
    child.wait()
    print("saved", len(asked))
    sys.exit(signals.exit_code())
print(child.pid, flush=True)
time.sleep(100)
"""


PRINTING = """
import sys, time
from hpt_ray.observe.console import CommandConsole
from hpt_ray.utils import signals
signals.watch()
asked = []
with signals.answered_by(lambda: asked.append(1)):
    while not asked:
        CommandConsole().print("step 1")
        time.sleep(0.05)
    CommandConsole().print("step 2")
signals.say("saved")
sys.exit(signals.exit_code())
"""


def start(folder: Path, *words: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """The command above once it watches, and the process that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANSWERING, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, psutil.Process(int(process.stdout.readline()))


def has_ended(process: psutil.Process) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 143)])
def test_with_nothing_to_save_it_ends_at_once_with_its_children(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process, child = start(tmp_path)
    process.send_signal(number)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert said == "Stopped. Nothing was under way that had to be saved.\n"
    assert has_ended(child)
    assert (tmp_path / "removed").read_text() == "removed "


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 143)])
def test_a_signal_that_comes_twice_within_moments_is_one(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process, child = start(tmp_path, "saves")
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)
    printed, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert (printed, said) == ("saved 1\n", "")
    assert has_ended(child)


def test_a_later_second_signal_gives_up_and_says_what_is_lost(tmp_path: Path) -> None:
    process, child = start(tmp_path, "saves", "slowly")
    process.send_signal(TERM)
    time.sleep(signals.REFLEX_S + 0.2)
    process.send_signal(INT)
    printed, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert (printed, said) == ("", "Gave up. Steps 3 to 5 are lost.\n")
    assert has_ended(child)
    assert (tmp_path / "removed").read_text() == "removed "


def test_a_reader_that_went_away_is_a_request_and_breaks_nothing(tmp_path: Path) -> None:
    """As in `hpt_ray train | tee log`, where a Ctrl-C ends the `tee`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "step 1\n"
    process.stdout.close()
    assert process.stderr is not None
    assert (process.wait(LIMIT_S), process.stderr.read()) == (143, "saved\n")


def test_outside_of_a_command_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (INT, TERM)]
    asked: list[bool] = []
    with signals.answered_by(lambda: asked.append(True)):
        signal.raise_signal(TERM)
        signal.raise_signal(TERM)
    assert asked == [True]
    assert signals.exit_code() == 143
    assert [signal.getsignal(number) for number in (INT, TERM)] == before


@pytest.mark.parametrize("number", [INT, TERM])
@pytest.mark.parametrize("words", [["hpt_ray", "train"], ["hpt_ray.main"], ["hpt_ray.cli.evaluate"]])
def test_while_a_command_is_imported(words: list[str], number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + LIMIT_S
    while not catches(process.pid, TERM) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    printed, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + number, said
    assert (printed, said) == ("", "Stopped. Nothing was under way that had to be saved.\n")


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_the_command_to_go_on_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-u", "-m", "pytest", "x"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", sys.modules["hpt_ray.main"].__spec__)
    words = ["--config", "my run.yaml", "resume=runs/old", "data.columns={prompt: q}"]
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    start = "python3 -u -m hpt_ray.main --config 'my run.yaml'"
    assert this_command() == f"{start} resume=runs/old 'data.columns={{prompt: q}}'"
    assert this_command(resume="runs/a b") == f"{start} 'data.columns={{prompt: q}}' 'resume=runs/a b'"


def test_a_script_is_named_as_it_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "hpt_ray"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(script), "train", "run.steps=3"])
    assert this_command() == f"{script} train run.steps=3"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert this_command(resume="auto") == "hpt_ray train run.steps=3 resume=auto"


def test_a_run_that_is_done_is_not_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: done}\n")
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 7}))
    (tmp_path / "checkpoints" / "step-000007").mkdir(parents=True)
    began = time.perf_counter()
    assert main.main([f"resume={tmp_path}", "run.steps=7"]) == 0
    assert time.perf_counter() - began < LIMIT_S
    printed, said = capsys.readouterr()
    assert printed.startswith(f"nothing left to do: {tmp_path} has all of its 7 steps.")
    assert (printed.count("\n"), said) == (1, "")


HUNG_UP = """
import os, sys, time
from hpt_ray.observe.console import CommandConsole
from hpt_ray.utils import signals
signals.watch()
asked, said = [], open("said", "w", buffering=1)
with signals.answered_by(lambda: asked.append(1)):
    print("ready", file=said)
    while not asked:
        CommandConsole().print("step 1")  # until the terminal is full: then it waits in the middle of a write
CommandConsole().print("step 2")
signals.say("saved")
print("saved", file=said)
sys.exit(signals.exit_code())
"""


def test_a_terminal_that_is_closed_is_a_request_to_stop(tmp_path: Path) -> None:
    """The kernel sends SIGHUP as the terminal goes; what is printed after it is no error."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-c", HUNG_UP], {**os.environ, "PYTHONPATH": str(ROOT)})
    said = tmp_path / "said"
    deadline = time.monotonic() + LIMIT_S
    while not (said.is_file() and "ready" in said.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert b"step" in os.read(terminal, 1000)
    os.close(terminal)
    assert has_ended(psutil.Process(pid))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert said.read_text().split() == ["ready", "saved"]


NOTICED = """
import errno, sys
from hpt_ray.observe.console import CommandConsole
from hpt_ray.utils import signals
class Gone:
    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")
    flush = isatty = lambda self: False
signals.watch()
asked = []
with signals.answered_by(lambda: asked.append(1)):
    CommandConsole(file=Gone()).print("step 1")
    CommandConsole(file=Gone()).print("step 2")
print("saved", len(asked))
sys.exit(signals.exit_code())
"""


def test_a_closed_terminal_that_is_noticed_before_its_signal_is_the_same_request() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NOTICED]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGHUP, "saved 1\n"), ended.stderr


def test_nohup_keeps_a_command_running(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-c", ANSWERING, "saves"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(TERM)
    assert process.wait(LIMIT_S) == 143
