"""`kill -9`, or another signal, for processes of a run, at moments that are drawn from a seed.

Ray writes what an actor does into its process title (`ray::LearnerWorker.step`), so a process can be caught in
the middle of one of its methods.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from hpt_ray.observe.run_folder import RunFolder

POLL_S = 0.0005


@dataclass(frozen=True)
class Fault:
    """Once `step` steps are done, `signal` what `victim` names: as soon as a process does what `during` names
    (nothing: after up to half a second), title prefixes of Ray's both, or part of a command line.
    """

    step: int
    victim: str
    during: str | None = None
    signal: signal.Signals = signal.SIGKILL


class Killer(threading.Thread):
    """Carries out faults, in order, on the descendants of process `root`."""

    def __init__(self, root: int, runs: Path, faults: list[Fault], *, seed: int):
        super().__init__(daemon=True)
        self._root, self._runs, self._faults = psutil.Process(root), runs, faults
        self._random = random.Random(seed)
        self.killed: list[str] = []

    def run(self) -> None:
        for fault in self._faults:
            if not self._wait(lambda step=fault.step: steps_done(self._runs) >= step):
                return
            if fault.during is None:
                time.sleep(self._random.uniform(0, 0.5))
            elif not self._wait(lambda during=fault.during: self._find(during)):
                return
            victims: list[psutil.Process] = []
            if not self._wait(
                lambda fault=fault, victims=victims: victims.extend(self._find(fault.victim)) or victims
            ):
                return
            with suppress(psutil.NoSuchProcess):
                self._random.choice(victims).send_signal(fault.signal)
                self.killed.append(fault.victim)

    def _find(self, name: str) -> list[psutil.Process]:
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in self._root.children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    words = process.cmdline()
                    if words and (words[0].startswith(name) or any(name in word for word in words[1:])):
                        found.append(process)
        return found

    def _wait(self, condition: Callable[[], object]) -> bool:
        """Whether it came true while the run was there."""
        while self._root.is_running() and self._root.status() != psutil.STATUS_ZOMBIE:
            if condition():
                return True
            time.sleep(POLL_S)
        return False


def steps_done(runs: Path) -> int:
    """The last step in the metrics of the newest run in this folder."""
    metrics = runs / "latest" / "metrics.jsonl"
    lines = RunFolder(metrics.parent.resolve()).read_metrics() if metrics.is_file() else []
    return lines[-1]["step"] if lines else 0
