"""What the live page takes: seconds until it is open with much data, and what it costs while a run trains.

    python benchmarks/watch.py

Writes benchmarks/results/watch.json, and from it the figures in docs/watch.md.
Makes 200 runs of 5,000 steps, the first of them with 1,000,000 rollouts and 250,000 attempts, serves them and opens
every view in Chromium, each in a new page of a warm server, several times. `open_s`: medians, from the address to
what was asked for. `together_s`: all 200 runs drawn over each other. `server_share`: processor time of the server while
a page shows a run that does a step a second, as a share of one core, and of the machine; the run itself does nothing
for the page.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine, versions, write
from quickstart import between_marks

from hpt_ray.observe.metrics import METRICS
from hpt_ray.observe.rollout_dump import SCHEMA, dump_of
from hpt_ray.observe.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "watch.json", ROOT / "docs" / "watch.md"
NUM_RUNS, STEPS, DUMPED_STEPS, PROMPTS, N = 200, 5000, 500, 500, 4  # 500 × 500 × 4 rollouts
LIVE_S = 30
READY = {
    "curves": "figure .u-wrap",
    "gate": "canvas[data-cells]",
    "rollouts": ".hit",
    "time": "figure .u-wrap",
    "config": "tbody tr, caption",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "watch",
        "versions": versions("uvicorn", "starlette", "pyarrow", "playwright"),
        "machine": machine(),
        "settings": {"runs": NUM_RUNS, "steps": STEPS, "rollouts": DUMPED_STEPS * PROMPTS * N}
        | {"repeats": arguments.repeats},
    }
    with tempfile.TemporaryDirectory() as folder:
        first = make_runs(Path(folder))
        report["result"] = measured(Path(folder), first, arguments.repeats)
    write(arguments.out, report)
    if arguments.out == RESULT:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")


def page(text: str, report: dict[str, Any] | None) -> str:
    """docs/watch.md with the report's figures between its marks; without a report there are none."""
    if report is None:
        return between_marks(text, "", of=RESULT.name)
    where, settings, found = report["machine"], report["settings"], report["result"]
    runs, steps, dumped = (f"{settings[name]:,}" for name in ("runs", "steps", "rollouts"))
    took = ", ".join(f"{view} {seconds:.1f}" for view, seconds in found["open_s"].items())
    load = f"{where['num_cpus']} cores, load {where['load_1min_before']:.1f} before"
    part = (
        f"With {runs} runs of {steps} steps, one of them with {dumped} rollouts, the views open in seconds:\n"
        f"{took}; all {runs} runs are drawn over each other in {found['together_s']:.1f} s. While a run of one step a\n"
        f"second is watched, the server takes {found['server_share']:.1%} of a core ({load};\n"
        "`benchmarks/watch.py`).\n"
    )
    return between_marks(text, part, of=RESULT.name)


def make_runs(parent: Path) -> RunFolder:
    """The runs; returns the one with rollouts. Runs share files by links, which no reader notices."""
    folders = [RunFolder.create(parent, f"run-{i}") for i in range(NUM_RUNS)]
    first = folders[0]
    names = [metric.name for metric in METRICS if metric.every_step and metric.name != "step"]
    random = np.random.default_rng(0)
    with first.metrics.open("w") as file:
        for step in range(1, STEPS + 1):
            values = random.random(len(names)).round(5).tolist()
            file.write(json.dumps({"step": step, **dict(zip(names, values, strict=True))}) + "\n")
    shared = shutil.copy(first.metrics, parent / "metrics.jsonl")  # not the one that grows
    for i, folder in enumerate(folders):
        config = f"run: {{name: run-{i}, steps: {STEPS}, seed: {i}}}\nalgorithm: {{name: hpt}}\n"
        folder.config.write_text(config)
        if folder is not first:
            os.link(shared, folder.metrics)
    made = dump_of(first.rollouts, 1)
    pq.write_table(pa.Table.from_pylist([*rollouts()], schema=SCHEMA), made, compression="zstd")
    for step in range(2, DUMPED_STEPS + 1):
        os.link(made, dump_of(first.rollouts, step))
    with first.prompt_history.open("w") as file:
        for step in range(1, DUMPED_STEPS + 1):
            for i in random.integers(7000, size=PROMPTS).tolist():
                weights = {"rollout_weight": float(i % 5 > 0), "demo_weight": float(i % 5 == 0)}
                counts = {"correct": i % 5, "rollouts": N, "aborted": 0}
                file.write(json.dumps({"step": step, "prompt_id": f"q/{i}", **counts, **weights}) + "\n")
    return first


def rollouts() -> Any:
    """The lines of one step."""
    for i in range(PROMPTS):
        shared = {
            "step": 1,
            "group": i,
            "prompt_id": f"q/{i}",
            "data_source": "q",
            "prompt": f"What is {i}+1?",
        }
        shared |= {"branch": "rollouts", "reason": "solved", "num_correct": 1, "num_rollouts": N}
        shared |= {"rollout_weight": 1.0, "demo_weight": 0.0}
        for j in range(N):
            sampled = {"request_id": f"q/{i}", "sample": j, "text": f"It is {i + j}. " * 20, "finish": "stop"}
            sampled |= {"token_ids": [*range(100)], "logprobs": [-0.5] * 100, "weight_version": 1}
            yield {**shared, **sampled, "score": float(j == 1), "outcome": "correct" if j == 1 else "wrong"}


def measured(parent: Path, first: RunFolder, repeats: int) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "hpt_ray", "watch", str(parent), "--port", "0"]
    server = psutil.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    address = server.stdout.readline().strip()
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox"])

            def opened(hash: str, ready: str, seconds: list[float]) -> Any:
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                page.set_default_timeout(300_000)
                begin = time.perf_counter()
                page.goto(address + hash)
                page.wait_for_selector(ready)
                seconds.append(time.perf_counter() - begin)
                return page

            took: dict[str, list[float]] = {view: [] for view in READY}
            for _ in range(repeats):
                for view, ready in READY.items():
                    one_run = "" if view == "curves" else f"&runs={first.root.name}"
                    opened(f"#view={view}{one_run}", ready, took[view]).close()
            together: list[float] = []
            ids = ",".join(path.name for path in sorted(parent.glob("run-*")))
            drawn = f".legend:has-text('and {NUM_RUNS - 12} more')"
            for _ in range(repeats):
                opened(f"#runs={ids}", drawn, together).close()
            page = opened(f"#runs={first.root.name}", READY["curves"], [])
            share = busy(server, lambda: grow(first))
            page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
    return {
        "open_s": {view: round(median(seconds), 2) for view, seconds in took.items()},
        "first_open_s": {view: round(seconds[0], 2) for view, seconds in took.items()},
        "together_s": round(median(together), 2),
        "server_share": round(share, 4),
        "machine_share": round(share / psutil.cpu_count(), 4),
    }


def grow(run: RunFolder) -> None:
    """A step a second."""
    line = json.loads(run.metrics.read_text().splitlines()[-1])
    for _ in range(LIVE_S):
        time.sleep(1)
        line["step"] += 1
        run.append_metrics(line)


def busy(process: psutil.Process, meanwhile: Callable[[], None]) -> float:
    """Processor time of a process over the time that it took."""
    begin, used = time.perf_counter(), process.cpu_times()
    meanwhile()
    now = process.cpu_times()
    return (now.user + now.system - used.user - used.system) / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
