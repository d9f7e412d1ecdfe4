"""Real runs whose checkpoints are damaged: what is whole is used and kept, and where nothing is, all stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import TINY, run_main

from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]


def flip(checkpoint: Path) -> None:
    file = checkpoint / "hf" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_damaged_checkpoints_are_set_aside_and_where_none_is_whole_the_run_stops(tmp_path):
    words = [*TINY, "algorithm.name=sft", "group_size=0", f"run.dir={tmp_path}", "resume=auto"]
    words += ["checkpoint.every=1", "checkpoint.keep=2"]
    made = run_main([*words, "run.steps=3"])
    assert made.returncode == 0, made.stdout + made.stderr
    folder = RunFolder((tmp_path / "latest").resolve())
    names = ["step-000002", "step-000003"]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == names

    for name in names:
        flip(folder.checkpoints / name)
    before = folder.metrics.read_text()
    stopped = run_main([*words, "run.steps=5"])
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    assert all(name in stopped.stderr for name in [*names, "model.safetensors", "resume=never"])
    assert "Traceback" not in stopped.stderr
    assert folder.metrics.read_text() == before
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == names

    flip(folder.checkpoints / "step-000002")  # whole again
    resumed = run_main([*words, "run.steps=5", "checkpoint.keep=1"])
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "damaged-step-000003",
        "step-000005",
    ]
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4, 5]
    assert folder.read_metrics()[2]["faults/checkpoint_damaged"] == 1
