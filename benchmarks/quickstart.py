"""The first run of a new user: how good the model gets, and where the time goes.

    python benchmarks/quickstart.py --bases 0 1 2 --seeds 0 1 2 3 4 --out benchmarks/results/quickstart.json
    python benchmarks/quickstart.py --pages      # write its figures into README.md and docs/quickstart.md

Runs `python -m hpt_ray.main run.seed=S` once per base and seed, as `make demo` does. The cache is a new folder, so
the first run also generates the small task and builds the weak base. Base 0 is the product's own; base B is trained
by the same recipe with run.seed=B. Bases differ between machines as well, since sums of floats do: what is claimed
of the quickstart must hold on all of them. Reads the run folders; writes one JSON with versions, machine, and for
each run the accuracies, the share of prompts sent to demonstrations and the seconds by part; `ranges`: mean, least
and most over all runs; and `result`: the targets and whether every run meets them. With `--busy`, other work ran on
the machine, and seconds are left out.

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
RESULTS = ROOT / "benchmarks" / "results"
WINDOW = 5  # steps that stand for the start and for the end
OOD_PREFIX = "ood_"
RATIO = "selection/demo_prompt_ratio"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bases", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--busy", action="store_true", help="leave the seconds out")
    parser.add_argument("--pages", action="store_true", help="only write the pages again")
    parser.add_argument("--out", type=Path, default=RESULTS / "quickstart.json", help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.pages:
        for path, text in pages(json.loads(arguments.out.read_text(encoding="utf-8"))).items():
            path.write_text(text, encoding="utf-8")
        return
    report: dict[str, Any] = {
        "benchmark": "quickstart",
        "versions": versions(),
        "machine": machine(),
        "settings": {"config": "configs/quickstart.yaml", "steps": arguments.steps, "window": WINDOW},
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for base in arguments.bases:
            model = f"mini:t-s{base}" if base else "mini:t"
            if base:
                command("hpt_ray.cli.mini_base", [model], Path(folder) / "cache")
            for seed in arguments.seeds:
                runs.append(
                    {"base": base, **run(seed, arguments.steps, model, Path(folder) / f"base-{base}")}
                )
                if arguments.busy:
                    del runs[-1]["seconds"]
                report |= {"runs": runs, "ranges": ranges(runs), "result": result(runs)}
                write(arguments.out, report)


def command(module: str, arguments: Sequence[str], cache: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1", **os.environ, "HPT_RAY_CACHE": str(cache)},  # one thread, as in Makefile
        check=True,
    )


def run(seed: int, steps: int, model: str, folder: Path) -> dict[str, Any]:
    """One run; the cache is kept beside `folder` for the runs that follow."""
    cache = folder.parent / "cache"
    runs = folder / f"seed-{seed}"
    builds_base = not cache.exists()
    begin = time.perf_counter()
    quickstart = ["--config", str(ROOT / "configs" / "quickstart.yaml")]
    command(
        "hpt_ray.main",
        [*quickstart, f"model.path={model}", f"run.seed={seed}", f"run.steps={steps}", f"run.dir={runs}"],
        cache,
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


def ranges(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, least and most over all runs, of every eval set and of both means."""
    figures = [
        {name: run["accuracy"][name] for name in ("in_distribution", "out_of_distribution")}
        | run["accuracy"]["sets"]
        for run in runs
    ]
    return {
        name: {"mean": fmean(values), "least": min(values), "most": max(values)}
        for name in figures[0]
        for values in [[figure[name] for figure in figures]]
    }


def result(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each target with the worst figure of all runs, and whether it is met."""
    accuracy = min(run["accuracy"]["in_distribution"] for run in runs)
    start = min(run["demonstrations"]["start"] for run in runs)
    end = max(run["demonstrations"]["end"] for run in runs)
    targets = {
        "accuracy on the six held-out sets at least 0.92": [accuracy, accuracy >= 0.92],
        "share of demonstrations at the start at least 0.3": [start, start >= 0.3],
        "share of demonstrations at the end at most 0.1": [end, end <= 0.1],
    }
    if all("seconds" in run for run in runs):
        seconds = max(run["seconds"]["wall"] for run in runs)
        targets["at most 300 s, base included"] = [seconds, seconds <= 300]
    return {"passed": all(met for _, met in targets.values()), "targets": targets}


# -- the figures in README and docs -----------------------------------------------------------------


def pages(report: dict[str, Any]) -> dict[Path, str]:
    """README.md and docs/quickstart.md with the report's figures between their marks."""
    parts = {ROOT / "README.md": sentence(report), ROOT / "docs" / "quickstart.md": table(report["runs"])}
    return {path: between_marks(path.read_text(encoding="utf-8"), part) for path, part in parts.items()}


def between_marks(page: str, part: str, *, of: str = "quickstart.json") -> str:
    begin, end = f"<!-- {of} -->\n", "<!-- end -->"
    head, found, rest = page.partition(begin)
    assert found, f"the page has no {begin}"
    return head + begin + part + end + rest.partition(end)[2]


def sentence(report: dict[str, Any]) -> str:
    runs, over = report["runs"], report["ranges"]
    bases, seeds = (len({run[name] for run in runs}) for name in ("base", "seed"))
    return (
        f"After 100 steps, over {bases} base models × {seeds} seeds = {len(runs)} runs, the model solves\n"
        f"{spread(over['in_distribution'])} of held-out prompts of the six families, and\n"
        f"{spread(over['out_of_distribution'])} of two families that only the base was trained on\n"
        "([docs/quickstart.md](docs/quickstart.md)).\n"
    )


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One line a base: mean, least and most over its seeds."""
    lines = [
        "| base | seeds | six held-out sets | `ood_boxes` | `ood_lose` | demonstrations, first 5 steps | last 5 |",
        "|---|---|---|---|---|---|---|",
    ]
    for base in sorted({run["base"] for run in runs}):
        mine = [run for run in runs if run["base"] == base]
        over = ranges(mine)
        shares_of = {when: fmean(run["demonstrations"][when] for run in mine) for when in ("start", "end")}
        cells = [spread(over[name]) for name in ("in_distribution", "ood_boxes", "ood_lose")]
        cells += [f"{share:.0%}" for share in shares_of.values()]
        lines.append(f"| {base} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(over: dict[str, float]) -> str:
    return f"{over['mean']:.1%} ({over['least']:.1%} to {over['most']:.1%})"


if __name__ == "__main__":
    main()
