"""A run whose disk is full: a save that fails is counted, the run goes on, and a later start goes on from there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command import TINY, run_main

from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def used_mb(folder: Path) -> int:
    printed = subprocess.run(["du", "-sm", folder], capture_output=True, text=True, check=True).stdout
    return int(printed.split()[0])


def test_a_run_on_a_full_disk_goes_on_and_starts_again_where_there_is_room(small_disk):
    disk = small_disk(200)
    words = [*TINY, "algorithm.name=sft", "group_size=0", f"run.dir={disk}", "resume=auto"]
    words += ["checkpoint.every=1", "checkpoint.keep=0", "run.deterministic=true"]
    made = run_main([*words, "run.steps=1"])
    assert made.returncode == 0, made.stdout + made.stderr
    folder = RunFolder((disk / "latest").resolve())
    small_disk(used_mb(disk) + used_mb(folder.checkpoints / "step-000001") * 2 // 3)

    failed = run_main([*words, "run.steps=3"])
    assert failed.returncode == 1, failed.stdout + failed.stderr
    said = " ".join(failed.stdout.split())
    assert "The run goes on, but the checkpoint of step 2 could not be saved: learner-0:" in said
    assert "the checkpoint of step 3 could not be saved" in failed.stderr
    assert "Traceback (most" not in failed.stderr
    lines = folder.read_metrics()
    assert [(line["step"], line.get("faults/checkpoint_failed")) for line in lines] == [
        (1, None),
        (2, 1),
        (3, 1),
    ]
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000001"]

    (disk / "filler").write_bytes(b"")
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(200 << 20))
    before = {path: path.read_bytes() for path in (folder.metrics, folder.config)}
    refused = run_main([*words, "run.steps=3", "learner.learning_rate=1.0e-3"])
    assert refused.returncode in (1, 2), refused.stdout + refused.stderr
    assert "No space left on device" in refused.stderr
    assert "Traceback (most" not in refused.stderr
    assert {path: path.read_bytes() for path in before} == before

    (disk / "filler").unlink()
    small_disk(200)
    resumed = run_main([*words, "run.steps=3"])
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Continuing from step 1" in resumed.stdout
    again = folder.read_metrics()
    assert [line["step"] for line in again] == [1, 2, 3]
    assert [line["optim/grad_norm"] for line in again] == [line["optim/grad_norm"] for line in lines]
