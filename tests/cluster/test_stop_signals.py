"""Ctrl-C and SIGTERM as terminals, `timeout` and schedulers send them, to a run in a process group of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from command import ROOT, TINY, child_environment, left_of, write_reward_function

from hpt_ray.utils.signals import REFLEX_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

INT, TERM = signal.SIGINT, signal.SIGTERM
START_S = 280  # of one run on a busy machine
TRAIN = [sys.executable, "-m", "hpt_ray", "train", *TINY]


class Run:
    """A command that has its process group, and what it printed."""

    def __init__(self, command: list[str], log: Path):
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def wait_until(self, is_so: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_S
        while not is_so():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def learners(self) -> list[psutil.Process]:
        found = []
        for child in self.children:
            with suppress(psutil.Error):  # it ended just now
                if "ray::LearnerWorker" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def ends(self, code: int, within_s: float, started_here: list[psutil.Process]) -> str:
        """It does with this exit code and leaves no process; its last line."""
        assert self.process.wait(within_s) == code, self.log.read_text()
        assert not left_of(started_here, within_s=10)
        printed = self.log.read_text()
        assert "Traceback" not in printed
        assert "Error" not in printed
        return printed.splitlines()[-1]


@contextmanager
def started(command: list[str], log: Path) -> Iterator[Run]:
    run = Run(command, log)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def steps_done(runs: Path) -> int:
    metrics = runs / "latest" / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.is_file() else 0


def saved(runs: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (runs / "latest" / "checkpoints").glob("step-*"))


def test_stopped_again_and_again_it_goes_on_as_the_line_says(tmp_path: Path) -> None:
    """SIGTERM twice to the group; SIGINT from `timeout`, to the process and the group; a later second SIGINT."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    reward_function = write_reward_function(tmp_path)
    keys = [f"run.dir={runs}", "run.steps=1000", "checkpoint.every=0", f"reward.function={reward_function}"]
    with started([*TRAIN, *keys], log) as run:
        run.wait_until(lambda: steps_done(runs) >= 2)
        started_here = run.children
        os.killpg(run.process.pid, TERM)
        os.killpg(run.process.pid, TERM)
        line = run.ends(143, 60, started_here)
    (folder,) = (path.parent for path in runs.glob("*-*/config.yaml"))
    first, again = goes_on(line, folder)
    assert first == saved(runs)[-1] == steps_done(runs)
    assert again == [*TRAIN, *keys, f"resume={folder}"]

    with started(["timeout", "500", *again], log) as run:
        run.wait_until(lambda: steps_done(runs) > first)
        started_here = run.children
        run.process.send_signal(INT)  # which `timeout` sends to its child, and then to its group
        line = run.ends(130, 60, started_here)
    second, same = goes_on(line, folder)
    assert second == saved(runs)[-1] == steps_done(runs) > first
    assert same == again
    assert f"Continuing from step {first}" in log.read_text()

    with started(again, log) as run:
        run.wait_until(lambda: steps_done(runs) > second)
        started_here = run.children
        (learner,) = run.learners()
        learner.suspend()  # so that nothing can be saved
        os.killpg(run.process.pid, INT)
        time.sleep(REFLEX_S + 0.5)
        os.killpg(run.process.pid, INT)
        line = run.ends(130, 10, started_here)
    assert re.fullmatch(rf"Gave up. Steps? {second + 1}.* lost; step {second} is saved.", line), line

    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


def goes_on(line: str, folder: Path) -> tuple[int, list[str]]:
    """The step that is saved, and the command that goes on."""
    found = re.fullmatch(r"Stopped after step (\d+) of 1000, which is saved in (\S+)\. To go on: (.+)", line)
    assert found, line
    assert Path(found[2]) == folder
    return int(found[1]), shlex.split(found[3])


def test_while_it_starts_it_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while Ray is there and the actors come up."""
    with started([*TRAIN, f"run.dir={tmp_path / 'runs'}"], tmp_path / "log") as run:
        run.wait_until(run.learners)
        started_here = run.children
        os.killpg(run.process.pid, INT)
        line = run.ends(130, 10, started_here)
    assert line == "Stopped. Nothing was under way that had to be saved."
    assert not saved(tmp_path / "runs")


SUITE = f"""
title: One run
out: OUT
recipe: {ROOT}/tests/cluster/tiny.yaml
models: {{t: {{title: fresh, config: {{model: {{path: "mini:t-fresh"}}, run: {{steps: 1000}}}}}}}}
methods: {{hpt: {{title: HPT, config: {{algorithm: {{name: hpt}}}}}}}}
matrix: {{seeds: [1]}}
sets: {{test: {{chain: "mini:test/chain"}}, in_distribution: [chain]}}
"""


@pytest.mark.long
def test_a_suite_lets_its_runs_save(tmp_path: Path) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    suite.write_text(SUITE.replace("OUT", str(out)), encoding="utf-8")
    command = [sys.executable, "-m", "hpt_ray", "suite", str(suite)]
    with started(command, tmp_path / "log") as run:
        run.wait_until(lambda: any(path.read_text().count("\n") >= 2 for path in out.rglob("metrics.jsonl")))
        started_here = run.children
        os.killpg(run.process.pid, INT)
        os.killpg(run.process.pid, INT)
        line = run.ends(130, 90, started_here)
    assert line.startswith("Stopped. The runs under way were told to save, and have ended. To go on: ")
    assert line.endswith(shlex.join(command))
    (metrics,) = out.rglob("metrics.jsonl")
    done = metrics.read_text().count("\n")
    assert (metrics.parent / "checkpoints" / f"step-{done:06d}").is_dir()
