"""A suite whose runs are jobs of a Ray cluster: one fails, the command is stopped and started again."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import ROOT, child_environment
from nodes import HOST, Nodes, cluster, wait_for
from ray.job_submission import JobDetails, JobSubmissionClient

LIMIT_S = 600.0
SUITE = f"""
title: A very small suite of jobs
out: OUT
recipe: {ROOT}/tests/cluster/tiny.yaml
models:
  t:
    title: fresh
    config: {{model: {{path: "mini:t-fresh"}}, run: {{steps: 3}}, cluster: {{address: auto}}}}
methods:
  sft: {{title: SFT, config: {{group_size: 0, algorithm: {{name: sft}}}}}}
  broken: {{title: Broken, config: {{data: {{train: [OUT/nowhere.parquet]}}}}}}
  hpt: {{title: HPT, config: {{algorithm: {{name: hpt}}}}}}
matrix: {{seeds: [1]}}
sets:
  test: {{chain: "mini:test/chain"}}
  in_distribution: [chain]
pass_at_k: {{config: asked.yaml, benchmarks: [mini-chain], samples: 2, methods: [hpt], base: false}}
"""


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT_S)
def test_jobs_go_on_without_the_suite_and_are_found_again(tmp_path: Path) -> None:
    suite, out, printed = tmp_path / "suite.yaml", tmp_path / "out", tmp_path / "printed"
    suite.write_text(SUITE.replace("OUT", str(out)), encoding="utf-8")
    (tmp_path / "asked.yaml").write_text("rollout: {num_cpus: 0.5, kv_cache_gib: 0.125}\n", encoding="utf-8")

    with cluster(2) as nodes:
        with start(nodes, suite, printed, RAY_AUTH_MODE="disabled") as refused:
            assert refused.wait(LIMIT_S) == 2
        assert "takes jobs" in printed.read_text()

        token = Path(nodes.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        client = JobSubmissionClient(
            f"http://{HOST}:{nodes.dashboard}", headers={"Authorization": f"Bearer {token}"}
        )

        def jobs(name: str) -> list[JobDetails]:
            return [job for job in client.list_jobs() if job.metadata["hpt_ray.id"] == name]

        with start(nodes, suite, printed) as first:
            wait_for(lambda: jobs("t.hpt.s1") or first.poll() is not None, LIMIT_S)
            assert first.poll() is None, printed.read_text()
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 143
        assert "t.broken.s1 failed: exit code 2" in printed.read_text()
        assert "jobs under way go on" in printed.read_text()
        assert [job.status.is_terminal() for job in jobs("t.hpt.s1")] == [False]

        with start(nodes, suite, printed) as second:
            assert second.wait(LIMIT_S) == 1, printed.read_text()
        submitted = Counter(job.metadata["hpt_ray.id"] for job in client.list_jobs())

    ended = [json.loads(line)["job"] for line in (out / "journal.jsonl").read_text().splitlines()]
    assert ended == [
        *("t.sft.s1", "t.broken.s1"),
        *("t.hpt.s1", "t.broken.s1", "pass@k t.hpt.s1"),  # what was under way comes first
    ]
    assert submitted == {"t.sft.s1": 1, "t.hpt.s1": 1, "t.broken.s1": 2, "pass@k t.hpt.s1": 1}
    said = " ".join(printed.read_text().split())
    assert "jobs 3/3" in said  # HPT and its evaluation, and the broken one again
    why = f"{out}/nowhere.parquet"
    assert said.count("missing:") == 1
    assert why in said.partition("missing: t.broken.s1: exit code 2: error: ")[2]

    numbers = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert list(numbers["missing"]) == ["t.broken.s1"]
    assert why in numbers["missing"]["t.broken.s1"]
    assert {run["method"] for run in numbers["runs"]} == {"sft", "hpt"}
    assert [row["method"] for row in numbers["pass_at_k"]] == ["hpt"]
    assert why in (out / "report.html").read_text(encoding="utf-8")
    assert why in (out / "logs" / "t.broken.s1.log").read_text(encoding="utf-8")


@contextmanager
def start(nodes: Nodes, suite: Path, printed: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The suite as a person starts it, from a machine that has the cluster's token; ended with the block."""
    words = ["--jobs", "ray", "--address", f"http://{HOST}:{nodes.dashboard}", "--working-dir", str(ROOT)]
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpt_ray.tools.suite", str(suite), *words],
            cwd=suite.parent,
            env=child_environment(**nodes.environment | environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
