"""Published benchmark files, in the forms publishers give them, to question files."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpt_ray.data.benchmarks import BENCHMARKS
from hpt_ray.data.prepare import SINGLE_FILES, main
from hpt_ray.data.sources import read_rows
from hpt_ray.reward import check_ground_truth

EVAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "eval"


def prepare(name, source, out, *more):
    code = main([name, "--source", os.fspath(source), "--out", str(out), *more])
    return list(read_rows(out / f"{name}.parquet")) if code == 0 else None


@pytest.mark.skipif(not EVAL.is_dir(), reason="the published evaluation files are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "count"), [("aime24", 30), ("aime25", 30), ("amc", 40), ("math500", 500), ("olympiad", 674)]
)
def test_the_files_of_the_hpt_repository(tmp_path, capsys, name, count):
    rows = prepare(name, EVAL, tmp_path)
    assert len(rows) == count
    assert BENCHMARKS[name].published[count].split(",")[0] in " ".join(capsys.readouterr().out.split())
    assert len({row.messages[0]["content"] for row in rows}) == count
    assert {row.data_source for row in rows} == {name}
    assert [row.number for row in rows if check_ground_truth(row.ground_truth, "math")] == []


def test_math500_with_levels_as_on_the_hub(tmp_path):
    published = {
        "problem": "What is 1+1?",
        "solution": "…",
        "answer": "2",
        "subject": "Algebra",
        "level": 3,
        "unique_id": "test/1",
    }
    (tmp_path / "test.jsonl").write_text(
        json.dumps(published)
        + "\n"
        + json.dumps({**published, "problem": "1+2?", "answer": "3", "level": "Level 5"})
        + "\n"
    )
    rows = prepare("math500", tmp_path, tmp_path / "out")
    assert [(r.messages[0]["content"], r.ground_truth, r.extra["level"], r.extra["id"]) for r in rows] == [
        ("What is 1+1?", "2", "3", "test/1"),
        ("1+2?", "3", "5", "test/1"),
    ]


def test_arc_gets_letters_whatever_its_labels(tmp_path):
    rows = [
        {
            "id": "a",
            "question": "Which?",
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        {
            "id": "b",
            "question": "What?",
            "choices": {"text": ["w", "x", "y"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    first, second = prepare("arc-c", tmp_path / "test.parquet", tmp_path / "out")
    assert first.messages == [
        {
            "role": "user",
            "content": "Which?\n\nA. ice\nB. fire\n\nAnswer with the letter of the right choice, as in \\boxed{A}.",
        }
    ]
    assert (first.ground_truth, second.ground_truth) == ("B", "C")


def test_gpqa_choices_are_shuffled_the_same_way_every_time(tmp_path):
    fields = [
        "Record ID",
        "Prompt",
        "Correct Answer",
        "Incorrect Answer 1",
        "Incorrect Answer 2",
        "Incorrect Answer 3",
    ]
    with (tmp_path / "gpqa_diamond.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        writer.writerows(
            [f"r{i}", f"Question {i}?", "right", "wrong, 1", "wrong 2", "wrong 3"] for i in range(40)
        )
    rows = prepare("gpqa-diamond", tmp_path, tmp_path / "out")
    again = prepare("gpqa-diamond", tmp_path, tmp_path / "again")
    assert [row.ground_truth for row in rows] == [row.ground_truth for row in again]
    assert {row.ground_truth for row in rows} == set("ABCD")
    for row in rows:
        assert f"{row.ground_truth}. right\n" in row.messages[0]["content"]


def test_a_mixed_file_of_verl_with_every_prompt_32_times(tmp_path, capsys):
    rows = [
        {
            "data_source": source,
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": f"{source} {i}?"}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
        }
        for source in ("amc", "aime")
        for _ in range(32)
        for i in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "valid.all.parquet")
    made = prepare("amc", tmp_path / "valid.all.parquet", tmp_path / "out", "--where", "data_source=amc")
    assert [(row.messages[0]["content"], row.ground_truth) for row in made] == [
        (f"amc {i}?", str(i)) for i in range(5)
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert "155" in printed  # repeated rows left out
    assert "no published version" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"prompt": "q"}]',
            "row 1: none of answer, final_answer, expected_answer holds a text; found prompt",
        ),
        ('[{"prompt": "q", "answer": "1"}, 7]', "row 2: should be an object"),
        ('{"a": 1}', "should hold a list of objects, one per row, found dict"),
        ("[", "not readable as json"),
        ("[]", "no row is left"),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_written(tmp_path, capsys, content, message):
    (tmp_path / "AIME24.json").write_text(content)
    assert prepare("aime24", tmp_path, tmp_path / "out") is None
    error = capsys.readouterr().err
    assert "AIME24.json" in error
    assert message in error
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_which_file_must_be_clear(tmp_path, capsys):
    for name in ("train.json", "more.json"):
        (tmp_path / name).write_text('[{"prompt": "q", "answer": "1"}]')
    assert prepare("minerva", tmp_path, tmp_path / "out") is None
    assert "several files could hold minerva: more.json, train.json. Add --file" in capsys.readouterr().err
    assert len(prepare("minerva", tmp_path, tmp_path / "out", "--file", "more*")) == 1
    assert main(["minerva", "--source", str(tmp_path / "missing"), "--out", str(tmp_path)]) == 2
    assert "no such file or folder, and no Hub name" in capsys.readouterr().err
    assert main(["minerva", "--out", str(tmp_path)]) == 2
    assert "minerva needs --source" in capsys.readouterr().err


def test_a_hub_name_without_network(tmp_path):
    command = [
        sys.executable,
        "-m",
        "hpt_ray.data.prepare",
        "amc",
        "--source",
        "nobody/amc",
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert run.returncode == 2
    assert "the Hub does not give a data set of this name" in run.stderr
    assert "Traceback" not in run.stderr


def test_every_benchmark_can_be_prepared():
    others = {name for name in BENCHMARKS if not name.startswith("mini")} - set(SINGLE_FILES)
    assert others == {"gsm8k"}
