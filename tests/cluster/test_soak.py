"""benchmarks/soak.py at a small size: in 60 steps nothing grows beyond its bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"
STEPS = 60


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_grows(tmp_path):
    out = tmp_path / "soak.json"
    subprocess.run([sys.executable, str(SOAK), "--steps", f"{STEPS}", "--out", str(out)], check=True)
    report = json.loads(out.read_text())
    assert report["raw"]["total"]["step"] == " ".join(str(step) for step in range(1, STEPS + 1))
    assert {"driver", "learner", "rollout", "reference", "verifier"} <= report["result"][
        "growth_by_kind"
    ].keys()
    assert report["result"]["flat"], json.dumps(report["result"], indent=2)
