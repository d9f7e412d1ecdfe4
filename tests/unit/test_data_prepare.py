"""From published files to question files."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpt_ray.data.prepare import PREPARERS, main
from hpt_ray.data.sources import read_rows
from hpt_ray.reward.functions.table import build

GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k"
ANSWER = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all $<<1000+24=1024>>1,024.\n#### 1,024"


def write_gsm8k(folder, train, test=({"question": "q", "answer": "a\n#### 1"},)):
    for name, records in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_gsm8k_rows(tmp_path):
    write_gsm8k(tmp_path, [{"question": "How many?", "answer": ANSWER}])
    assert main(["gsm8k", "--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (row,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert row == {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "How many?"}],
        "target": [
            {
                "role": "assistant",
                "content": "She sold 48/2 = 24 clips.\nIn all $1,024.\nThe answer is \\boxed{1024}.",
            }
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1024"},
        "extra_info": {"split": "train", "index": 0, "answer": ANSWER},
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "answer": "no last line"}, "train.jsonl, row 2: `answer` should end in"),
        ({"question": "q", "answer": "a\n#### many"}, "train.jsonl, row 2: `answer` should end in"),
        ({"question": "q"}, "train.jsonl, row 2: should be an object with a text `answer`"),
        ("text", "train.jsonl, row 2: should be an object with the row's columns, found str"),
    ],
)
def test_a_bad_row_is_named_and_no_file_is_left(tmp_path, capsys, record, message):
    write_gsm8k(tmp_path, [{"question": "q", "answer": ANSWER}, record])
    out = tmp_path / "out"
    assert main(["gsm8k", "--source", str(tmp_path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert list(out.iterdir()) == []


def write_math(folder, per_level):
    """Files as the Hub has them, a subject each; those of the test set must not be taken."""
    for subject in ("algebra", "geometry"):
        for split in ("train", "test"):
            rows = [
                {
                    "problem": f"{split}: what is {i} of {subject} at {level}?",
                    "level": f"Level {level}",
                    "type": subject,
                    "solution": f"It is $\\boxed{{\\frac{{{i}}}{{7}}}}$.",
                }
                for level in ("1", "3", "4", "5", "?")
                for i in range(per_level)
            ]
            (folder / subject).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / subject / f"{split}-00000-of-00001.parquet")


def test_math255(tmp_path, capsys):
    write_math(tmp_path / "math", 50)
    for out in ("a", "b"):
        assert main(["math255", "--source", str(tmp_path / "math"), "--out", str(tmp_path / out)]) == 0
    rows = pq.read_table(tmp_path / "a" / "math255.parquet").to_pylist()
    assert rows == pq.read_table(tmp_path / "b" / "math255.parquet").to_pylist()
    assert Counter(row["data_source"] for row in rows) == {f"MATH/level {level}": 85 for level in (3, 4, 5)}
    texts = {row["prompt"][0]["content"] for row in rows}
    assert len(texts) == 255
    assert all(text.startswith("train") for text in texts)
    grade = build("math")
    assert all(grade(r["target"][0]["content"], r["reward_model"]["ground_truth"]).correct for r in rows)
    assert not grade("\\boxed{99}", rows[0]["reward_model"]["ground_truth"]).correct
    write_math(tmp_path / "few", 42)
    assert main(["math255", "--source", str(tmp_path / "few"), "--out", str(tmp_path / "c")]) == 2
    assert "84 problems of level 3 are too few" in capsys.readouterr().err


def test_missing_source(tmp_path, capsys):
    assert main(["gsm8k", "--source", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "train.jsonl: no such file" in capsys.readouterr().err
    assert main(["gsm8k", "--out", str(tmp_path)]) == 2
    assert "--source" in capsys.readouterr().err


def test_mini_and_help_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "hpt_ray.data.prepare"]
    run = subprocess.run(
        [*command, "mini", "--out", tmp_path / "mini"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "30,000" in run.stdout
    assert (tmp_path / "mini" / "train.parquet").is_file()
    shown = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert all(f"  {name}" in shown for name in PREPARERS)


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the published GSM8K files are not beside the checkout")
def test_all_of_gsm8k(tmp_path, capsys):
    assert main(["gsm8k", "--source", os.fspath(GSM8K), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "7,473" in printed
    assert "1,319" in printed
    for name, count in (("train", 7473), ("test", 1319)):
        rows = list(read_rows(tmp_path / f"{name}.parquet"))
        assert len(rows) == count
        for row in rows:
            number = row.extra["answer"].rsplit("#### ", 1)[1].replace(",", "")
            assert row.ground_truth == number
            assert row.demonstration.endswith(f"\\boxed{{{number}}}.")
            assert "<<" not in row.demonstration
            assert "####" not in row.demonstration
