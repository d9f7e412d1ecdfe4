"""A reward function that fails now and then: counted in each step, and above its share the run is saved and ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import TINY, run_main

from hpt_ray.observe.rollout_dump import dump_of, read_rollouts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SOMETIMES = """
def grade(response, ground_truth, extra_info):
    print("graded")
    if len(response) % 3 == 0:
        raise ValueError("odd answer")
    return {"score": float(len(response) % 2 == 0), "length": len(response)}
"""


def test_failures_are_counted_and_above_their_share_the_run_is_saved_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "sometimes.py"
    file.write_text(SOMETIMES, encoding="utf-8")
    words = [
        *(*TINY, f"run.dir={tmp_path / 'runs'}", "run.steps=3", "reward.require_finished=false"),
        *("algorithm.name=grpo", f"reward.function=python:{file}:grade", "reward.max_failure_share=0.01"),
        *("checkpoint.every=0", "checkpoint.in_memory_every=0"),
    ]
    ended = run_main(words)
    assert ended.returncode == 1, ended.stderr
    run = (tmp_path / "runs" / "latest").resolve()
    dump = dump_of(run / "rollouts", 1)
    said = " ".join(ended.stderr.split())
    why = "ValueError: odd answer; sometimes.py:5; in grade(response="
    for text in ("more than reward.max_failure_share=0.01", why, str(dump)):
        assert text in said
    failed = [line for line in read_rollouts(dump) if line["outcome"] == "error"]
    assert failed
    assert all(len(line["text"]) % 3 == 0 for line in failed)
    [line] = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert line["step"] == 1
    assert line["reward/failure_share"] == pytest.approx(len(failed) / 32)
    assert line["reward/metric/length"] > 0
    assert (run / "checkpoints" / "step-000001").is_dir()
    assert "graded" in (run / "logs" / "verifier-0.log").read_text(encoding="utf-8")
    assert "graded" not in ended.stdout
