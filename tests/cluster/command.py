"""`python -m hpt_ray.main` as a person runs it: a process of its own, with its exit code and its words."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, "-m", "hpt_ray.main"]
REPLAY = [sys.executable, "-m", "hpt_ray.cli.replay"]
LIMIT_S = 170  # of one run; below the limit of a test, so that what was printed is shown

REWARD = "def grade(response, ground_truth):\n    return len(response) % 2 == 0\n"

TINY = ["--config", "tests/cluster/tiny.yaml"]


def write_reward_function(folder: Path) -> str:
    """The name of a reward function that an untrained model satisfies about half the time, and never learns."""
    file = folder / "parity.py"
    file.write_text(REWARD, encoding="utf-8")
    return f"python:{file}:grade"


def run_main(
    arguments: Sequence[str], *, command: Sequence[str] = MAIN, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The finished process, output and errors as text."""
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def left_of(processes: Sequence[psutil.Process], *, within_s: float) -> list[psutil.Process]:
    """Those that still run after so many seconds; an ended one that nobody has waited for does not."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + within_s
    while (left := [process for process in processes if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def child_environment(**changes: str) -> dict[str, str]:
    """This environment without what would lead a child to another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "COLUMNS": "100", **changes}
