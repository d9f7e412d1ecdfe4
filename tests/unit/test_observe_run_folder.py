"""The run folder: unique names, the link to the latest, metrics lines, and going on after a stop."""

import json
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from hpt_ray.errors import UserError
from hpt_ray.observe.prompt_history import PromptHistory
from hpt_ray.observe.run_folder import RunFolder, write_json


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
    write_json(folder.summary, {"wall_s": 1.0})
    with pytest.raises(TypeError):
        write_json(folder.summary, {"wall_s": object()})
    assert json.loads(folder.summary.read_text()) == {"wall_s": 1.0}


# -- names, clocks and other users -------------------------------------------------------------------


def with_checkpoint(folder: Path, step: int = 1) -> RunFolder:
    (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    return RunFolder(folder)


def test_names_are_in_utc_whatever_the_local_time_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-14")
    time.tzset()
    before = datetime.now(UTC)
    made = RunFolder.create(tmp_path, "demo").root.name
    monkeypatch.undo()
    time.tzset()
    assert f"demo-{before:%Y%m%d-%H%M%S}" <= made <= f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def test_a_clock_that_goes_back_does_not_make_the_older_run_the_newest(tmp_path: Path) -> None:
    for name in ("demo-20990101-000000", "demo-20990101-000000-3", "demo-big-20991231-000000"):
        with_checkpoint(tmp_path / name)
    for number in (4, 5):
        made = RunFolder.create(tmp_path, "demo")
        assert made.root.name == f"demo-20990101-000000-{number}"
        with_checkpoint(made.root)
        assert RunFolder.newest(tmp_path, "demo") == made


@pytest.mark.parametrize("name", ["step-3", "step-000003"])
def test_a_file_is_no_checkpoint_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "demo-20250101-000000" / "checkpoints").mkdir(parents=True)
    (tmp_path / "demo-20250101-000000" / "checkpoints" / name).write_text("x")
    assert RunFolder.newest(tmp_path, "demo") is None


@pytest.mark.parametrize("how", ["owner", "everybody", "checkpoints"])
def test_what_another_user_may_have_planted_is_passed_over(tmp_path: Path, caplog, how: str) -> None:
    planted = with_checkpoint(tmp_path / "demo-99991231-235959")
    match how:
        case "owner":
            if os.getuid():
                pytest.skip("only root can make a folder of another user")
            os.chown(planted.root, 65534, 65534)
        case "everybody":
            planted.root.chmod(0o777)
        case "checkpoints":
            planted.checkpoints.chmod(0o777)
    with pytest.raises(UserError, match="other user"):
        RunFolder.newest(tmp_path, "demo")
    mine = with_checkpoint(tmp_path / "demo-20250101-000000")
    assert RunFolder.newest(tmp_path, "demo") == mine
    assert str(planted.root) in caplog.text
    if how != "checkpoints":  # nor does its time count
        assert not RunFolder.create(tmp_path, "demo").root.name.startswith("demo-9999")


def test_run_folders_are_ours_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = with_checkpoint(RunFolder.create(tmp_path, "demo").root)
    finally:
        os.umask(before)
    assert RunFolder.newest(tmp_path, "demo") == made


def test_lines_and_files_that_cannot_be_read_do_not_stop_a_resume(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    for text in ("[" * 100_000, "null", '{"step": ', '{"step": "1"}', "\0" * 100, '{"a": 1}'):
        folder.append_metrics({"step": 1})
        with folder.metrics.open("a") as file:
            file.write(text + "\n")
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 2, "\xff": 1}\n')
    (folder.rollouts / "step-x.parquet").write_text("")
    history = tmp_path / "prompt_history.jsonl"
    history.write_text('{"step": 1, "prompt_id": "a"}\n{"step": 2, "pro')
    assert [line["step"] for line in folder.read_metrics()] == [1] * 6
    assert folder.cut_after(0) == 6
    assert folder.metrics.read_text() == ""
    PromptHistory(history).cut_after(1)
    assert history.read_text() == '{"step": 1, "prompt_id": "a"}\n'
