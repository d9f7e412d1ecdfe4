"""A suite on the real stack: killed in the middle, taken up again, and what came of it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from command import ROOT, child_environment

LIMIT_S = 400.0
SUITE = f"""
title: A very small suite
out: OUT
recipe: {ROOT}/tests/cluster/tiny.yaml
models: {{t: {{title: fresh, config: {{model: {{path: "mini:t-fresh"}}, run: {{steps: 3}}}}}}}}
methods:
  sft: {{title: SFT, config: {{group_size: 0, algorithm: {{name: sft}}}}}}
  hpt: {{title: HPT, config: {{algorithm: {{name: hpt}}}}}}
matrix: {{seeds: [1]}}
sets:
  test: {{chain: "mini:test/chain", lose: "mini:test/lose"}}
  in_distribution: [chain]
  out_of_distribution: [lose]
sweep:
  tries: [{{learner.learning_rate: 1.0e-3}}]
  seeds: [9]
  sets: {{chain: "mini:validation/chain"}}
pass_at_k: {{benchmarks: [mini-chain], samples: 2, methods: [hpt], base: false}}
paper: {{table2: [t]}}
"""


def command(suite: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "hpt_ray.tools.suite", str(suite), *words]


def run_suite(suite: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(suite, *words),
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_suite_that_was_killed_goes_on_and_reports(tmp_path: Path) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    suite.write_text(SUITE.replace("OUT", str(out)), encoding="utf-8")

    first = subprocess.Popen(command(suite), cwd=ROOT, env=child_environment())
    try:
        children = wait_until_second_job(first, out)
    finally:
        first.kill()
        first.wait()
    done = {path.parent.name for path in out.glob("runs/t.*/summary.json")}
    assert len(done) == 1
    gone_by = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < gone_by, "a run goes on without its suite"
        time.sleep(0.2)

    second = run_suite(suite)
    assert second.returncode == 0, second.stdout + second.stderr
    summaries = {path.parent.name for path in out.glob("runs/t.*/summary.json")}
    assert done < summaries
    assert sorted(name.rpartition("-")[0].rpartition("-")[0] for name in summaries) == [
        *("t.hpt.s1", "t.hpt.try1.s9", "t.sft.s1", "t.sft.try1.s9")
    ]
    assert "jobs 4/4" in second.stdout  # three runs and pass@k; the run that was done is not counted

    numbers = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert numbers["missing"] == {}
    assert {(run["method"], run["seed"]) for run in numbers["runs"]} == {("sft", 1), ("hpt", 1)}
    assert all(run["scores"].keys() >= {"chain", "lose", "all"} for run in numbers["runs"])
    assert [row["method"] for row in numbers["pass_at_k"]] == ["hpt"]
    assert "A very small suite" in (out / "report.html").read_text(encoding="utf-8")

    plan = run_suite(suite, "--dry-run")
    assert "2 of 2 tries and 2 of 2 runs are done" in plan.stdout
    changed = run_suite(suite, "--dry-run", "models.t.config.run.steps=4")
    assert "0 of 2 tries and 0 of 2 runs are done" in changed.stdout
    assert "run.steps: 3 → 4" in changed.stdout


def wait_until_second_job(process: subprocess.Popen, out: Path) -> list[int]:
    """Until one run is done and the next is under way; the process ids of the runs."""
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        assert process.poll() is None, "the suite ended by itself"
        if list(out.glob("runs/t.*/summary.json")) and len(list(out.glob("runs/t.*/config.yaml"))) > 1:
            return children_of(process.pid)
        time.sleep(0.2)
    raise AssertionError(f"no second run within {LIMIT_S:.0f} s")


def children_of(pid: int) -> list[int]:
    """The runs among the children of a suite."""
    mine = psutil.Process(pid).children()
    return [child.pid for child in mine if "hpt_ray.tools.suite.jobs" in child.cmdline()]


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_row_of_the_paper_is_tried_on_a_cpu_and_not_again(tmp_path: Path) -> None:
    words = ["--pilot", "--only", "qwen2.5-math-1.5b.hpt.s1", f"out={tmp_path}", "pass_at_k.benchmarks=[]"]
    first = run_suite(Path("configs/paper/suite.yaml"), *words, "final.benchmarks=[math500, arc-c]")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "data/openr1.parquet is not here" in first.stdout
    journal = (tmp_path / "pilot" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["job"] for line in journal] == [
        *("qwen2.5-math-1.5b.hpt.s1", "final qwen2.5-math-1.5b.base")
    ]
    (summary,) = tmp_path.glob("pilot/runs/qwen*/summary.json")
    assert json.loads(summary.read_text())["steps"] == 2

    again = run_suite(Path("configs/paper/suite.yaml"), *words, "final.benchmarks=[math500, arc-c]")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len((tmp_path / "pilot" / "journal.jsonl").read_text().splitlines()) == 2
