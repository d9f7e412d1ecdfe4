"""The first run of a new user: how good the model gets, and where the time goes.

    python benchmarks/quickstart.py --seeds 0 1 2 --out benchmarks/results/quickstart.json

Runs `python -m hpt_ray.main run.seed=S` once per seed, as `make demo` does. The cache is a new folder, so the
first run also generates the small task and builds the weak base. Reads the run folders; writes one JSON with
versions, machine, and for each seed the accuracies, the share of prompts sent to demonstrations and the
seconds by part, and `result`: the targets and whether every seed meets them.

Parts of a run: `base` (its own start-up included), `startup` (actors, models, first sync), `rollout` (the
learner works meanwhile), `learner` (what was left of it after the last rollout), `sync`, `evaluation`,
`checkpoint`, `rest` of training, and `outside`: imports, data, starting and stopping Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from machine import machine, versions, write

from hpt_ray.data.mini import TRAIN_FAMILIES
from hpt_ray.observe.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
WINDOW = 5  # steps that stand for the start and for the end
OOD_PREFIX = "ood_"
RATIO = "selection/demo_prompt_ratio"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "quickstart",
        "versions": versions(),
        "machine": machine(),
        "settings": {"config": "configs/quickstart.yaml", "steps": arguments.steps, "window": WINDOW},
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, arguments.steps, Path(folder)) for seed in arguments.seeds]
    report |= {"runs": runs, "result": result(runs)}
    write(arguments.out, report)


def run(seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """One run; its cache is kept in `folder` for the runs that follow."""
    cache = folder / "cache"
    runs = folder / f"seed-{seed}"
    builds_base = not cache.exists()
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "hpt_ray.main", f"run.seed={seed}", f"run.steps={steps}", f"run.dir={runs}"],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1", **os.environ, "HPT_RAY_CACHE": str(cache)},  # one thread, as in Makefile
        check=True,
    )
    wall_s = time.perf_counter() - begin
    made = RunFolder(runs / "latest")
    summary = json.loads(made.summary.read_text(encoding="utf-8"))
    lines = made.read_metrics()
    base_s = base_seconds(RunFolder(cache / "runs" / "latest")) if builds_base else 0.0
    return {
        "seed": seed,
        "builds_base": builds_base,
        "accuracy": accuracies(summary["evaluations"]),
        "demonstrations": shares([line[RATIO] for line in lines if line["step"]]),
        "seconds": {"wall": wall_s, "base": base_s, **parts(summary, lines, wall_s - base_s)},
        "failures": summary["failures"],
    }


def base_seconds(base: RunFolder) -> float:
    return json.loads(base.summary.read_text(encoding="utf-8"))["wall_s"]


def accuracies(evaluations: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The last evaluation of every set, and the means over the sets that look like training and the others."""
    last = {name: points["last"]["mean"] for name, points in evaluations.items()}
    return {
        "sets": last,
        "in_distribution": fmean(last[name] for name in TRAIN_FAMILIES),
        "out_of_distribution": fmean(value for name, value in last.items() if name.startswith(OOD_PREFIX)),
        "before_training": fmean(evaluations[name]["first"]["mean"] for name in TRAIN_FAMILIES),
    }


def shares(ratios: Sequence[float]) -> dict[str, float]:
    """Share of prompts sent to demonstrations, step by step, at the start and at the end."""
    start, end = ratios[:WINDOW], ratios[-WINDOW:]
    return {"first": ratios[0], "start": fmean(start), "end": fmean(end), "last": ratios[-1]}


def parts(summary: dict[str, Any], lines: Sequence[dict[str, Any]], wall_s: float) -> dict[str, float]:
    """Seconds by part; they add up to `wall_s`, the run without its base."""

    def total(name: str) -> float:
        return sum(line.get(f"time/{name}_s") or 0.0 for line in lines)

    rollout, sync, step = total("rollout"), total("sync"), total("step")
    between = {"evaluation": total("evaluation"), "checkpoint": total("checkpoint")}
    return {
        "outside": wall_s - summary["startup_s"] - summary["training_s"],
        "startup": summary["startup_s"],
        "rollout": rollout,
        "learner": step - rollout - sync,
        "sync": sync,
        **between,
        "rest": summary["training_s"] - step - sum(between.values()),
    }


def result(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each target with the worst figure of all seeds, and whether it is met."""
    accuracy = min(run["accuracy"]["in_distribution"] for run in runs)
    seconds = max(run["seconds"]["wall"] for run in runs)
    start = min(run["demonstrations"]["start"] for run in runs)
    end = max(run["demonstrations"]["end"] for run in runs)
    targets = {
        "accuracy on the six held-out sets at least 0.92": [accuracy, accuracy >= 0.92],
        "at most 300 s, base included": [seconds, seconds <= 300],
        "share of demonstrations at the start at least 0.3": [start, start >= 0.3],
        "share of demonstrations at the end at most 0.1": [end, end <= 0.1],
    }
    return {"passed": all(met for _, met in targets.values()), "targets": targets}


if __name__ == "__main__":
    main()
