"""The GPU benchmark runs as a command, with small shapes, on whatever device is here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("gpu") / "new" / "gpu.json"
    run = subprocess.run(
        [sys.executable, SCRIPT, "--small", "--out", file],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_part_has_run_or_says_why_not(report):
    result = report["result"]
    assert result["failed"] == {}
    assert set(result["skipped"].values()) <= {"needs CUDA", "flash-attn is not installed"}
    assert ("needs CUDA" in result["skipped"].values()) == (not torch.cuda.is_available())
    for name, part in report["raw"].items():
        assert (name in result["skipped"]) == ("skipped" in part)
    assert {"benchmark", "versions", "machine", "settings", "raw", "result"} == report.keys()


def test_training_is_timed_at_every_size(report):
    trained = [report["raw"][f"train/segments/{tokens}"] for tokens in report["settings"]["micro_batches"]]
    assert len(trained) == 3
    for part in trained:
        assert part["tokens_per_s"] > 0
        assert part["flops_per_s"] > part["tokens_per_s"]


def test_tiled_and_packed_forms_agree_with_the_plain_ones(report):
    """As near to float32 as rounding inputs and gradients to bfloat16 allows."""
    logprob, attention = report["raw"]["logprob/tiled"], report["raw"]["attention/segments"]
    assert max(logprob["errors"]["relative"][:2]) < 1e-5
    assert max(logprob["errors"]["relative"]) < 1e-2
    assert max(attention["errors"]["relative"]) < 2e-2


def test_the_gap_of_bfloat16_is_small_and_not_zero(report):
    gap = report["raw"]["bfloat16_gap"]
    assert 0 < gap["mean"] <= gap["p99"] <= gap["max"] < 0.1


def test_a_part_that_fails_is_kept_with_its_error(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    def broken() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    found = gpu.measured(broken, time_left=True)
    assert found["error"] == "RuntimeError: out of memory"
    assert "in broken" in found["traceback"]
    assert gpu.measured(broken, time_left=False) == {"skipped": "420 s had passed"}
