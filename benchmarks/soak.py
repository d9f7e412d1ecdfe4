"""Hundreds of steps of a tiny run: does anything grow?

    python benchmarks/soak.py --steps 500 --out benchmarks/results/soak.json

After every step each process of the run is looked at from outside: resident memory, file handles, threads; and
the whole: processes, bytes and objects in Ray's object store, what the store has spilled. The benchmark's own
process is the driver. Growth is the median of the last fifth of the steps minus that of the fifth in the middle,
so neither the start nor one step decides. "Flat" means growth within `BOUNDS` for all processes of every kind.
The file has every look as `pack` writes it, so that `result(unpack(raw))` gives the verdict again.
The run has two rollout workers, two learner ranks, a reference and checkpoints, and works ahead by one step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import ray
from drive import drive
from machine import machine, versions, write
from ray._private.internal_api import get_memory_info_reply

from hpt_ray.driver.batches import Batch
from hpt_ray.driver.driver import Driver
from hpt_ray.driver.step_metrics import Pairs

# By how much a figure may grow between the middle fifth and the last one.
BOUNDS = {"memory_mb": 16.0, "handles": 4, "threads": 4, "processes": 1, "store_mb": 4.0, "store_objects": 32}
# What our processes are called in Ray's titles and on their command lines; all others are Ray's own.
KINDS = {
    "ray::RolloutWorker": "rollout",
    "ray::LearnerWorker": "learner",
    "ray::ReferenceWorker": "reference",
    "ray::Verifier": "verifier",
    "hpt_ray.reward.pool": "reward_function",
    "ray::IDLE": "idle",
}
FORMAT = (
    "one text a figure, one value a look, a look after every step; 588.3×2 590 stands for 588.3 588.3 590, and - for "
    "a process that was not there; megabytes are rounded to 0.1 before anything is computed"
)
FIGURES = ("memory_mb", "handles", "threads")
TOTALS = ("step", "store_mb", "store_objects", "spilled_mb")
# Half of all answers are right, whatever the model does: the run does in its last step what it did in its first.
REWARD = "def grade(response, ground_truth):\n    return len(response) % 2 == 0\n"


class SoakDriver(Driver):
    """Looks at everything after every step."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.looks: list[dict[str, Any]] = []

    async def train_step(self, batch: Batch) -> tuple[dict[str, Any], Pairs]:
        outcome = await super().train_step(batch)
        self.looks.append({"step": batch.step, **look()})
        return outcome


def look() -> dict[str, Any]:
    """Figures of now: by process `KIND-PID`, and of the whole."""
    processes: dict[str, dict[str, float]] = {}
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            kind = "driver" if process == me else kind_of(process.cmdline())
            processes[f"{kind}-{process.pid}"] = {
                "memory_mb": megabytes(process.memory_info().rss),
                "handles": process.num_fds(),
                "threads": process.num_threads(),
            }
    store = get_memory_info_reply(ray._private.state.state).store_stats
    return {
        "processes": processes,
        "store_mb": megabytes(store.object_store_bytes_used),
        "store_objects": store.num_local_objects,
        "spilled_mb": megabytes(store.spilled_bytes_total),
    }


def megabytes(num_bytes: float) -> float:
    return round(num_bytes / 2**20, 1)


def kind_of(command: list[str]) -> str:
    for mark, kind in KINDS.items():
        if any(mark in word for word in command):
            return kind
    return "ray"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "soak", "versions": versions(), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        words = settings(arguments.steps, Path(folder))
        looks = asyncio.run(train(words, Path(folder)))
    report |= {
        "settings": {"overrides": [word.replace(f"{folder}/", "") for word in words], "bounds": BOUNDS},
        "raw": pack(looks),
        "result": result(looks),
    }
    write(arguments.out, report)


def settings(steps: int, folder: Path) -> list[str]:
    reward_function = folder / "parity.py"
    reward_function.write_text(REWARD, encoding="utf-8")
    return [
        f"run.steps={steps}",
        "prompts_per_step=8",
        "group_size=4",
        "max_tokens_per_micro_batch=512",
        "model.path=mini:t-fresh",
        "data.train=[mini:train]",
        "data.template=plain",
        "data.add_bos=true",
        "data.max_prompt_tokens=40",
        "data.max_response_tokens=44",
        "algorithm.kl_coef=0.001",
        "rollout.num_workers=2",
        "rollout.num_cpus=0.5",
        "rollout.kv_cache_gib=0.125",
        "rollout.max_off_policy_steps=1",
        f"reward.function=python:{reward_function}:grade",
        "learner.num_ranks=2",
        "learner.num_cpus=0.5",
        "learner.learning_rate=1.0e-7",
        "reference.num_cpus=0",
        "checkpoint.every=10",
        "cluster.address=local",
    ]


async def train(words: list[str], folder: Path) -> list[dict[str, Any]]:
    return (await drive(SoakDriver, words, folder)).looks


def result(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth from the middle fifth to the last: of the whole, and by kind of the process that grew most."""
    fifth = max(1, len(looks) // 5)
    middle, last = looks[2 * fifth : 3 * fifth], looks[-fifth:]
    grown = {
        name: median(look[name] for look in last) - median(look[name] for look in middle)
        for name in ("store_mb", "store_objects")
    }
    grown["processes"] = median(len(look["processes"]) for look in last) - median(
        len(look["processes"]) for look in middle
    )
    by_kind: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for process in steady(middle) & steady(last):
        kind = process.rpartition("-")[0]
        for name in FIGURES:
            growth = median(look["processes"][process][name] for look in last) - median(
                look["processes"][process][name] for look in middle
            )
            growth = round(growth, 2)
            by_kind[kind][name] = max(growth, by_kind[kind].get(name, growth))
    figures = [*grown.items(), *(item for growths in by_kind.values() for item in growths.items())]
    return {
        "steps": len(looks),
        "growth": grown,
        "growth_by_kind": {kind: by_kind[kind] for kind in sorted(by_kind)},
        "spilled_mb": looks[-1]["spilled_mb"],
        "flat": all(growth <= BOUNDS[name] for name, growth in figures),
    }


def steady(looks: list[dict[str, Any]]) -> set[str]:
    """The processes that were there all the time."""
    counts = Counter(name for look in looks for name in look["processes"])
    return {name for name, count in counts.items() if count == len(looks)}


def pack(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """All looks by figure, as `FORMAT` says. Most stay for many steps: 500 looks at 15 processes are 12 kB."""
    names = dict.fromkeys(process for look in looks for process in look["processes"])
    return {
        "format": FORMAT,
        "total": {name: in_runs(look[name] for look in looks) for name in TOTALS},
        "processes": {
            process: {
                name: in_runs(look["processes"].get(process, {}).get(name, "-") for look in looks)
                for name in FIGURES
            }
            for process in names
        },
    }


def unpack(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The looks that `micro_batch` was given."""
    total = {name: out_of_runs(text) for name, text in raw["total"].items()}
    looks: list[dict[str, Any]] = [
        dict(zip(total, values, strict=True)) | {"processes": {}}
        for values in zip(*total.values(), strict=True)
    ]
    for process, texts in raw["processes"].items():
        figures = [out_of_runs(texts[name]) for name in FIGURES]
        for look, *values in zip(looks, *figures, strict=True):
            if None not in values:
                look["processes"][process] = dict(zip(FIGURES, values, strict=True))
    return looks


def in_runs(values: Iterable[float | str]) -> str:
    runs = [(value, len(list(run))) for value, run in groupby(values)]
    return " ".join(f"{value}×{count}" if count > 1 else f"{value}" for value, count in runs)


def out_of_runs(text: str) -> list[float | None]:
    runs = [word.partition("×") for word in text.split()]
    return [
        None if value == "-" else json.loads(value)
        for value, _, count in runs
        for _ in range(int(count or 1))
    ]


if __name__ == "__main__":
    main()
