"""The small task with a fault every half minute: what gets done, what is lost.

    python benchmarks/chaos.py --minutes 60 --out benchmarks/results/chaos.json

First an undisturbed run for `--undisturbed-minutes`, then one whose processes are ended with kill -9, or frozen
with SIGSTOP, at moments drawn from the seed: rollout workers (engines), learner ranks, the reference scorer, the
verifier and its grading processes, and the driver, which is then started again with `resume=auto`. Read from the
run folder: steps, what was counted as mended, and for each fault the time to recover: from the fault until a step
is written that was not there before. "Twice" are steps that were written and, after a fault, computed again; the
one under way at the fault is not among them. "Lost" are steps that are missing from the metrics or there twice in
the end, and prompts of a step that were not visited exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
from machine import machine, versions, write

from hpt_ray.observe.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """What marks the processes one of which it hits (none: the driver), how often it is drawn, and the signal."""

    mark: str
    weight: int
    signal: signal.Signals = signal.SIGKILL


# Rare where much is computed again, or the run stands still until the freeze is noticed.
FAULTS = {
    "engine": Fault("ray::RolloutWorker", 8),
    "learner": Fault("ray::LearnerWorker", 4),
    "reference": Fault("ray::ReferenceWorker", 2),
    "verifier": Fault("ray::Verifier", 2),
    "reward_function": Fault("hpt_ray.reward.pool", 4),
    "driver": Fault("", 2),
    "frozen engine": Fault("ray::RolloutWorker", 1, signal.SIGSTOP),
    "frozen learner": Fault("ray::LearnerWorker", 1, signal.SIGSTOP),
}
# Ray's pings, by which a frozen process is noticed: every 300 s and 120 s for the answer, if nothing is set.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}
PAUSE_S = (20.0, 40.0)  # between two faults
PROMPTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--undisturbed-minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "chaos",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            "overrides": words(),
            "pause_s": PAUSE_S,
            "environment": ENVIRONMENT,
            "weights": {kind: fault.weight for kind, fault in FAULTS.items()},
            **{name: value for name, value in vars(arguments).items() if name != "out"},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        quiet = Run(Path(folder) / "quiet")
        quiet.go_on(arguments.undisturbed_minutes * 60, faults=None)
        disturbed = Run(Path(folder) / "disturbed")
        try:
            disturbed.go_on(arguments.minutes * 60, faults=random.Random(arguments.seed))
        except RuntimeError as error:  # a run that a fault has ended is a result too
            report["failed"] = str(error)
        report |= {"raw": {"undisturbed": quiet.figures(), "disturbed": disturbed.figures()}}
    report["result"] = result(**report["raw"])
    write(arguments.out, report)
    sys.exit(report.get("failed"))


def words() -> list[str]:
    """More steps than time; two engines, so that one can be missed; a reference, so that there is one to lose."""
    return [
        "run.steps=100000",
        f"prompts_per_step={PROMPTS}",
        "algorithm.kl_coef=0.001",
        "rollout.num_workers=2",
        "rollout.num_cpus=0.5",
        "reference.num_cpus=0",
        "learner.num_ranks=2",
        "learner.num_cpus=0.5",
        "checkpoint.every=10",
        "evaluation.sets={}",
        "evaluation.every=0",
        "observe.samples_every=0",
        "cluster.address=local",
    ]


class Run:
    """One run, through as many driver processes as it takes."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._faults: list[dict[str, Any]] = []
        self._seconds = 0.0

    def go_on(self, seconds: float, faults: random.Random | None) -> None:
        process = self._start()
        self._wait_for_step(process, 0)
        begin = time.monotonic()
        try:
            while (left := seconds - (time.monotonic() - begin)) > 0:
                time.sleep(min(left, faults.uniform(*PAUSE_S) if faults else left))
                if process.poll() is not None:
                    raise RuntimeError(f"the run ended by itself with code {process.returncode}")
                if faults and time.monotonic() - begin < seconds:
                    process = self._strike(process, faults)
        finally:
            self._seconds = time.monotonic() - begin
            process.terminate()
            process.wait(timeout=120)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "hpt_ray.main", *words(), f"run.dir={self._folder}", "resume=auto"],
            cwd=ROOT,
            env={**ENVIRONMENT, **os.environ},
            stdout=subprocess.DEVNULL,
        )

    def _strike(self, process: subprocess.Popen[bytes], faults: random.Random) -> subprocess.Popen[bytes]:
        """One fault, and the time until a step is written that was not there before."""
        weights = [fault.weight for fault in FAULTS.values()]
        (kind,) = faults.choices(list(FAULTS), weights)
        fault, step, begin = FAULTS[kind], self._last_step(), time.monotonic()
        if not fault.mark:
            process.send_signal(fault.signal)
            process.wait()
            process = self._start()
        else:
            found = find(process.pid, fault.mark)
            if not found:  # it is being started again already
                self._faults.append({"kind": kind, "step": step, "missed": True})
                return process
            with suppress(psutil.NoSuchProcess):
                faults.choice(found).send_signal(fault.signal)
        went_back_to = self._wait_for_step(process, step)
        self._faults.append(
            {
                "kind": kind,
                "step": step,
                "recovered_s": time.monotonic() - begin,
                "steps_twice": step - went_back_to,
            }
        )
        return process

    def _wait_for_step(self, process: subprocess.Popen[bytes], before: int) -> int:
        """Until a step after `before` is written; the step from which the run went on."""
        lowest, deadline = before, time.monotonic() + 600
        while (step := self._last_step()) <= before:
            lowest = min(lowest, step)
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no step is written any more; the driver's exit code: {process.poll()}")
            time.sleep(0.05)
        return lowest

    def _lines(self) -> list[dict[str, Any]]:
        latest = self._folder / "latest"
        return RunFolder(latest.resolve()).read_metrics() if latest.exists() else []

    def _last_step(self) -> int:
        return max((line["step"] for line in self._lines()), default=0)

    def figures(self) -> dict[str, Any]:
        lines = self._lines()
        steps = Counter(line["step"] for line in lines)
        attempts: Counter[int] = Counter()
        for text in (self._folder / "latest" / "prompt_history.jsonl").read_text().splitlines():
            attempts[json.loads(text)["step"]] += 1
        mended: Counter[str] = Counter()
        for line in lines:
            mended.update({k: v for k, v in line.items() if k.startswith("faults/")})
        last = max(steps, default=0)
        return {
            "seconds": self._seconds,
            "steps": last,
            "steps_missing_or_twice": sum(steps[step] != 1 for step in range(1, last + 1)),
            "steps_with_other_than_all_prompts": sum(attempts[s] != PROMPTS for s in range(1, last + 1)),
            "faults": self._faults,
            "mended_in_lines": dict(mended),
        }


def find(root: int, mark: str) -> list[psutil.Process]:
    """Descendants of process `root` whose title begins with `mark`, or whose command line has it."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            if command and (command[0].startswith(mark) or any(mark in word for word in command[1:])):
                found.append(process)
    return found


def result(undisturbed: dict[str, Any], disturbed: dict[str, Any]) -> dict[str, Any]:
    done = [fault for fault in disturbed["faults"] if "missed" not in fault]
    rate = undisturbed["steps"] / undisturbed["seconds"]
    return {
        "steps": disturbed["steps"],
        "steps_over_undisturbed": disturbed["steps"] / disturbed["seconds"] / rate,
        "steps_computed_twice": sum(fault["steps_twice"] for fault in done),
        "seconds_per_step_undisturbed": 1 / rate,
        "faults": dict(Counter(fault["kind"] for fault in done)),
        "mean_seconds_to_recover": {
            kind: fmean(fault["recovered_s"] for fault in done if fault["kind"] == kind)
            for kind in sorted({fault["kind"] for fault in done})
        },
        "nothing_lost": not (
            disturbed["steps_missing_or_twice"] or disturbed["steps_with_other_than_all_prompts"]
        ),
    }


if __name__ == "__main__":
    main()
