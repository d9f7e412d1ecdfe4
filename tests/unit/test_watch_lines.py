"""A growing file of JSON lines is read once, whatever a run does to it meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.watch.lines import JsonLines, last_line


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path, "demo")
    for step in range(1, 4):
        folder.append_metrics({"step": step, "reward/mean": step / 2})
    return folder


def values(lines: JsonLines, name: str = "step") -> list:
    return lines.table()[name].to_pylist()


def test_only_what_is_new_is_read(folder: RunFolder) -> None:
    lines = JsonLines(folder.metrics)
    assert values(lines) == [1, 2, 3]
    text = folder.metrics.read_bytes()
    first = text.index(b"\n") + 1
    folder.metrics.write_bytes(
        b"x" * (first - 1) + b"\n" + text[first:]
    )  # would be unreadable, if it were read
    lines._tail = folder.metrics.read_bytes()[-len(lines._tail) :]
    folder.append_metrics({"step": 4, "faults/engine_lost": 2})
    assert values(lines) == [1, 2, 3, 4]
    assert values(lines, "faults/engine_lost") == [None, None, None, 2]
    assert lines.num_unreadable == 0


def test_half_a_line_waits_for_its_rest(folder: RunFolder) -> None:
    lines = JsonLines(folder.metrics)
    line = json.dumps({"step": 4, "reward/mean": 2.5}) + "\n"
    with folder.metrics.open("a") as file:
        for i, letter in enumerate(line):
            file.write(letter)
            file.flush()
            assert values(lines) == [1, 2, 3] + [4] * (i + 1 == len(line))


def test_a_last_line_that_is_amended_is_read_again(folder: RunFolder) -> None:
    lines = JsonLines(folder.metrics)
    lines.table()
    folder.amend_metrics({"eval/easy/mean": 0.5})
    folder.append_metrics({"step": 4})
    assert values(lines, "eval/easy/mean") == [None, None, 0.5, None]


def test_a_run_that_goes_back_loses_the_later_steps(folder: RunFolder) -> None:
    lines = JsonLines(folder.metrics)
    lines.table()
    folder.cut_after(1)
    folder.append_metrics({"step": 2, "reward/mean": 9.0})
    folder.append_metrics({"step": 3, "reward/mean": 9.5})
    assert values(lines, "reward/mean") == [0.5, 9.0, 9.5]


def test_a_broken_line_costs_itself_and_is_counted(folder: RunFolder) -> None:
    text = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join([text[0], '{"step": 2, "rew\n', text[2], "\0\0\0\n"]))
    lines = JsonLines(folder.metrics)
    assert values(lines) == [1, 3]
    assert lines.num_unreadable == 2


def test_a_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    assert lines.table().num_rows == 0
    assert last_line(path) == b""
    path.write_text('{"step": 1}\n{"st')
    assert values(lines) == [1]
    assert last_line(path) == b'{"step": 1}'
    path.unlink()
    assert lines.table().num_rows == 0


def test_names_of_version_0_1_are_read_as_todays(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_text('{"question_id": "q"}\n')
    assert JsonLines(
        path, lambda names: [name.replace("question", "prompt") for name in names]
    ).table().column_names == ["prompt_id"]
