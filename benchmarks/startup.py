"""How long a run takes until it trains: seconds and CPU seconds, by phase and by process.

    python benchmarks/startup.py --against DIR --out benchmarks/results/startup.json

Runs the quickstart's actors with an untrained model for a step, several times, and with `--against` in turns with
the code of another checkout. Each side has a cache of its own, which a first run fills that does not count.
Nothing is asked of the code that is measured: process table, run folder and trace say it all.

Phases of `seconds`: `driver` (imports, data, plan; until the configuration is in the run folder), `processes`
(Ray, until every actor has a process), `models` (engines and ranks, the first sync; until the first step begins),
`training` and `end`. `cpu_s` is user and system time of every process until the first step begins, which other work
on the machine hardly touches; it misses what ran for less than a quarter of a second. `startup` and `until_training`
are what a person waits: `startup_s` of the summary, and the time from the command to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from machine import machine, versions, write

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trace import read_trace

ROOT = Path(__file__).resolve().parents[1]
LOOK_EVERY_S = 0.2
OVERRIDES = ["run.steps=1", "model.path=mini:t-fresh", "evaluation.every=0", "evaluation.sets={}"]
# What a command line holds, and whose process it is; the first that fits. What fits nothing is Ray's.
PROCESSES = {
    "ray::RolloutWorker": "rollout",
    "ray::LearnerWorker": "learner",
    "ray::Verifier": "verifier",
    "hpt_ray.reward": "verifier",
    "hpt_ray.main": "driver",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    sides = {"before": arguments.against} if arguments.against else {}
    sides["after"] = ROOT
    report: dict[str, Any] = {
        "benchmark": "startup",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            "config": "configs/quickstart.yaml",
            "overrides": OVERRIDES,
            "repeats": arguments.repeats,
            "versions": {name: version_of(code) for name, code in sides.items()},
        },
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(-1, arguments.repeats):
            for name, code in sides.items():
                found = run(code, Path(folder) / name)
                if i >= 0:
                    runs[name].append(found)
    report |= {"runs": runs, "result": result(runs)}
    write(arguments.out, report)


def version_of(code: Path) -> str:
    """What the code calls itself, and its commit."""
    names = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=code, check=True, capture_output=True, text=True
    )
    return names.stdout.strip()


def run(code: Path, folder: Path) -> dict[str, Any]:
    """One run of that code; its cache stays in `folder`."""
    runs = folder / f"runs-{time.time_ns()}"
    environment = {**os.environ, "PYTHONPATH": str(code), "HPT_RAY_CACHE": str(folder / "cache")}
    begin_s = time.time()
    process = psutil.Popen(
        [sys.executable, "-m", "hpt_ray.main", *OVERRIDES, f"run.dir={runs}"],
        cwd=code,
        env={"OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
    )
    seen_s: dict[str, float] = {}  # phase -> its end
    looks: list[tuple[float, dict[int, tuple[str, float]]]] = []  # time, and by process whose it is and CPU
    made = RunFolder(runs / "latest")
    while process.poll() is None:
        time.sleep(LOOK_EVERY_S)
        looks.append((time.time(), cpu_seconds(process)))
        if made.config.is_file():
            seen_s.setdefault("driver", time.time())
        if all((made.logs / f"{name}-0.log").is_file() for name in ("rollout", "learner")):
            seen_s.setdefault("processes", time.time())
    end_s = time.time()
    if process.returncode:
        raise SystemExit(f"{code}: the run ended with exit code {process.returncode}; see {made.logs}")
    steps = [span for span in read_trace(made.trace) if span.actor == "driver"]
    seen_s |= {"models": steps[0].start_s, "training": steps[-1].end_s, "end": end_s}
    starts = [begin_s, *seen_s.values()]
    summary = json.loads(made.summary.read_text(encoding="utf-8"))
    return {
        "startup": summary["startup_s"],
        "until_training": seen_s["models"] - begin_s,
        "seconds": {name: end - start for (name, end), start in zip(seen_s.items(), starts, strict=False)},
        "cpu_s": by_kind([used for when, used in looks if when <= seen_s["models"]]),
    }


def cpu_seconds(process: psutil.Process) -> dict[int, tuple[str, float]]:
    """Whose each process of the run is, and the user and system time it has had."""
    found = {}
    for each in [process, *process.children(recursive=True)]:
        try:
            command, times = " ".join(each.cmdline()), each.cpu_times()
        except psutil.Error:
            continue  # it has just ended
        kind = next((name for part, name in PROCESSES.items() if part in command), "ray")
        found[each.pid] = kind, times.user + times.system
    return found


def by_kind(looks: list[dict[int, tuple[str, float]]]) -> dict[str, float]:
    """CPU seconds by whose process it was when last seen, also of those that have ended; and of all."""
    last = {process: used for look in looks for process, used in look.items()}
    sums: defaultdict[str, float] = defaultdict(float)
    for kind, seconds in last.values():
        sums[kind] += seconds
    return {**sums, "all": sum(sums.values())}


def result(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Least and median of what a person waits and of all CPU seconds, by side; and the ratios of the sides."""
    figures = {
        name: {
            "startup": [found["startup"] for found in side],
            "until_training": [found["until_training"] for found in side],
            "cpu_s": [found["cpu_s"]["all"] for found in side],
        }
        for name, side in runs.items()
    }
    sums = {
        name: {what: {"least": min(values), "median": median(values)} for what, values in side.items()}
        for name, side in figures.items()
    }
    if "before" not in sums:
        return sums
    ratios = {
        what: {kind: value / sums["before"][what][kind] for kind, value in each.items()}
        for what, each in sums["after"].items()
    }
    return {**sums, "after_over_before": ratios}


if __name__ == "__main__":
    main()
