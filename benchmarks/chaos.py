"""The small task with a fault every half minute: what gets done, what is lost.

    python benchmarks/chaos.py --minutes 60 --out benchmarks/results/chaos.json

First an undisturbed run for `--undisturbed-minutes`, then one whose processes are ended with kill -9 at moments
drawn from the seed: rollout workers (engines), learner ranks, the reference scorer, the verifier and its grading
processes, and the driver, which is then started again with `resume=auto`. Read from the run folder: steps, what
was counted as mended, and for each fault how long it took until the next step was written. "Lost" are steps that
are missing from the metrics or there twice, and questions of a step that were not visited exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
from machine import machine, versions

from hpt_ray.observe.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
# Kinds of faults by what marks their process, with their weights: rare where much is computed again.
VICTIMS = {
    "engine": ("ray::RolloutWorker", 4),
    "learner": ("ray::LearnerWorker", 2),
    "reference": ("ray::ReferenceWorker", 1),
    "verifier": ("ray::VerifierService", 1),
    "grader": ("hpt_ray.reward.worker", 2),
    "driver": ("", 1),
}
PAUSE_S = (20.0, 40.0)  # between two faults
QUESTIONS = 32


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
            "weights": {kind: weight for kind, (_, weight) in VICTIMS.items()},
            **{name: value for name, value in vars(arguments).items() if name != "out"},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        quiet = Run(Path(folder) / "quiet")
        quiet.go_on(arguments.undisturbed_minutes * 60, faults=None)
        disturbed = Run(Path(folder) / "disturbed")
        disturbed.go_on(arguments.minutes * 60, faults=random.Random(arguments.seed))
        report |= {"raw": {"undisturbed": quiet.figures(), "disturbed": disturbed.figures()}}
    report["result"] = result(**report["raw"])
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["result"], indent=2))


def words() -> list[str]:
    """More steps than time; two engines, so that one can be missed; a reference, so that there is one to lose."""
    return [
        "run.steps=100000",
        f"questions_per_step={QUESTIONS}",
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
        self._wait_for_step(process)
        begin = time.monotonic()
        while (left := seconds - (time.monotonic() - begin)) > 0:
            time.sleep(min(left, faults.uniform(*PAUSE_S) if faults else left))
            if process.poll() is not None:
                raise RuntimeError(f"the run ended by itself with code {process.returncode}")
            if faults and time.monotonic() - begin < seconds:
                process = self._strike(process, faults)
        self._seconds = time.monotonic() - begin
        process.terminate()
        process.wait(timeout=120)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "hpt_ray.main", *words(), f"run.dir={self._folder}", "resume=auto"],
            cwd=ROOT,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdout=subprocess.DEVNULL,
        )

    def _strike(self, process: subprocess.Popen[bytes], faults: random.Random) -> subprocess.Popen[bytes]:
        """One fault, and the time until the next step is written."""
        weights = [weight for _, weight in VICTIMS.values()]
        (kind,) = faults.choices(list(VICTIMS), weights)
        step, begin = self._last_step(), time.monotonic()
        if kind == "driver":
            process.kill()
            process.wait()
            process = self._start()
        else:
            found = find(process.pid, VICTIMS[kind][0])
            if not found:  # it is being started again already
                self._faults.append({"kind": kind, "step": step, "missed": True})
                return process
            with suppress(psutil.NoSuchProcess):
                faults.choice(found).kill()
        self._wait_for_step(process)
        self._faults.append({"kind": kind, "step": step, "next_step_s": time.monotonic() - begin})
        return process

    def _wait_for_step(self, process: subprocess.Popen[bytes]) -> None:
        """Until another line is written than those that are there."""
        before = self._last_write()
        deadline = time.monotonic() + 600
        while self._last_write() == before:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no step is written any more; the driver's exit code: {process.poll()}")
            time.sleep(0.05)

    def _lines(self) -> list[dict[str, Any]]:
        latest = self._folder / "latest"
        return RunFolder(latest.resolve()).read_metrics() if latest.exists() else []

    def _last_step(self) -> int:
        return max((line["step"] for line in self._lines()), default=0)

    def _last_write(self) -> tuple[int, int]:
        """Changes with every step, also where one is done again."""
        metrics = self._folder / "latest" / "metrics.jsonl"
        return (len(self._lines()), metrics.stat().st_mtime_ns) if self._lines() else (0, 0)

    def figures(self) -> dict[str, Any]:
        lines = self._lines()
        steps = Counter(line["step"] for line in lines)
        visits: Counter[int] = Counter()
        for text in (self._folder / "latest" / "feedback.jsonl").read_text().splitlines():
            visits[json.loads(text)["step"]] += 1
        mended: Counter[str] = Counter()
        for line in lines:
            mended.update({k: v for k, v in line.items() if k.startswith("faults/")})
        last = max(steps, default=0)
        return {
            "seconds": self._seconds,
            "steps": last,
            "steps_missing_or_twice": sum(steps[step] != 1 for step in range(1, last + 1)),
            "steps_with_other_than_all_questions": sum(visits[s] != QUESTIONS for s in range(1, last + 1)),
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
        "steps_over_undisturbed": disturbed["steps"] / disturbed["seconds"] / rate,
        "faults": dict(Counter(fault["kind"] for fault in done)),
        "mean_seconds_to_next_step": {
            kind: fmean(fault["next_step_s"] for fault in done if fault["kind"] == kind)
            for kind in sorted({fault["kind"] for fault in done})
        },
        "nothing_lost": not (
            disturbed["steps_missing_or_twice"] or disturbed["steps_with_other_than_all_questions"]
        ),
    }


if __name__ == "__main__":
    main()
