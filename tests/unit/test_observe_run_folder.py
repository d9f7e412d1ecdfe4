"""The run folder: unique names, the link to the latest, metrics lines, and going on after a stop."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder


def test_folders_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path / "runs", "demo") for _ in range(5)]
    assert len({folder.root for folder in folders}) == 5
    assert all(path.is_dir() for path in (folders[0].rollouts, folders[0].checkpoints, folders[0].logs))
    link = tmp_path / "runs" / "latest"
    assert os.readlink(link) == folders[-1].root.name  # relative, so that runs/ can be moved
    assert not list((tmp_path / "runs").glob(".latest-*"))


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir"):
        RunFolder.create(tmp_path / "file", "demo")
    for name in ("a/b", "", "..", "a b"):
        with pytest.raises(UserError, match=r"run\.name"):
            RunFolder.create(tmp_path, name)
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match="Move it away"):
        RunFolder.create(tmp_path, "demo")


def test_open_takes_only_a_run_folder_and_makes_it_the_latest(tmp_path: Path) -> None:
    first, second = RunFolder.create(tmp_path, "demo"), RunFolder.create(tmp_path, "demo")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(first.root)
    first.config.write_text("run: {}\n")
    assert RunFolder.open(tmp_path / first.root.name) == RunFolder(first.root.resolve())
    assert (tmp_path / "latest").resolve() == first.root.resolve() != second.root.resolve()


def test_newest_is_the_last_run_of_that_name_with_a_checkpoint(tmp_path: Path) -> None:
    names = ["demo-20250101-000000", "demo-20250101-000000-2", "demo-20250101-000000-10"]
    for name in [*names, "demo-20240101-000000", "demo-big-20260101-000000", "demo-20270101-000000"]:
        (tmp_path / name / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "demo-20270101-000000" / "checkpoints" / "step-000001").rename(tmp_path / "elsewhere")
    (tmp_path / "demo-20270101-000000" / "checkpoints" / ".partial-step-000001").mkdir()
    assert RunFolder.newest(tmp_path, "demo") == RunFolder(tmp_path / "demo-20250101-000000-10")
    assert RunFolder.newest(tmp_path, "other") is None
    assert RunFolder.newest(tmp_path / "nowhere", "demo") is None


def test_a_metrics_line_is_strict_json_and_counts_what_was_not_finite(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    line = {"step": 1, "a": math.nan, "b": np.float32("inf"), "c": np.int64(3), "d": None, "e": 0.5}
    written = folder.append_metrics(line)
    assert written == {"step": 1, "a": None, "b": None, "c": 3, "d": None, "e": 0.5, "observe/non_finite": 2}

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(folder.metrics.read_text(), parse_constant=refuse) == written
    assert folder.read_metrics() == [written]


def test_after_a_resume_each_step_appears_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    assert folder.cut_after(0) == 0
    for step in range(6):
        folder.append_metrics({"step": step, "attempt": 1})
        (folder.rollouts / f"step-{step:06d}.parquet").write_text("")
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "atte')  # killed here
    assert [line["step"] for line in folder.read_metrics()] == [0, 1, 2, 3, 4, 5]
    assert folder.cut_after(3) == 2
    for step in (4, 5):
        folder.append_metrics({"step": step, "attempt": 2})
    assert [(line["step"], line["attempt"]) for line in folder.read_metrics()] == [
        (0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2),
    ]  # fmt: skip
    assert sorted(path.name for path in folder.rollouts.iterdir())[-1] == "step-000003.parquet"


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    folder.write_summary({"wall_s": 1.0})
    with pytest.raises(TypeError):
        folder.write_summary({"wall_s": object()})
    assert json.loads(folder.summary.read_text()) == {"wall_s": 1.0}
