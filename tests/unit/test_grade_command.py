"""`hpt_ray grade`: a file of responses in, a table of what was decided and why out."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpt_ray.__main__ import main
from hpt_ray.observe.rollout_dump import write_rollouts
from hpt_ray.types import Decision, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout
from hpt_ray.utils.arguments import OUTCOMES

ROWS = [
    {"response": r"So \boxed{x>2}.", "ground_truth": r"(2,\infty)"},
    {"response": r"So \boxed{101}.", "ground_truth": "101_2"},
    {"response": r"<think>\boxed{5}</think> No idea.", "ground_truth": "5"},
    {"response": None, "ground_truth": "5"},
]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_shows_what_was_decided_at_which_stage(tmp_path, capsys):
    assert main(["grade", lines(tmp_path / "a.jsonl", ROWS)]) == 0
    said = capsys.readouterr().out.splitlines()
    expected = [
        ("1", "correct", "set of numbers", "x>2", r"(2,\infty)"),
        ("2", "wrong", "number base", "101", "101_2"),
        ("3", "no_answer", "a box only in the thinking", "5"),
    ]
    for words in expected:
        assert any(all(f" {word} " in line for word in words) for line in said), (words, said)
    assert any("1 of 3 responses are correct" in line for line in said)
    assert any("1 rows without a text in `response` were left out" in line for line in said)


def test_reads_rollouts_and_any_reward_function(tmp_path, capsys):
    path = tmp_path / "step-000001.parquet"
    rows = {"text": ["4+4=8\n#### 8", "#### 9"], "reference": ["8", "8"], "prompt": ["4+4?"] * 2}
    pq.write_table(pa.table(rows), path)
    assert main(["grade", str(path), "--reward-function", "gsm8k", "--only", "wrong"]) == 0
    said = capsys.readouterr().out
    assert "│ 2 " in said
    assert "│ 1   │" not in said
    assert "1 of 2 responses are correct" in said


def test_a_reward_function_gets_of_a_runs_rollouts_what_it_got_in_training(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "def reward(response, ground_truth, level, prompt):\n"
        "    return float(level == 3 and prompt[0]['content'] == '4+4?' and ground_truth == [8])\n"
    )
    asked = [{"role": "user", "content": "4+4?"}]
    prompt = Prompt("sums/1", np.array([1]), "<user>4+4?", [8], "sums", extra={"level": 3}, source=asked)
    rollout = Rollout("sums/1", 0, np.array([5]), np.zeros(1), FinishReason.STOP, 1, "8")
    group = Group(prompt, [rollout], [RewardResult(1.0, Outcome.CORRECT)])
    path = write_rollouts(tmp_path, 1, [(group, Decision(1.0, 0.0, 1, 1, "solved"))])
    assert main(["grade", str(path), "--reward-function", f"python:{tmp_path}/own.py:reward"]) == 0
    assert "1 of 1 responses are correct" in capsys.readouterr().out


def test_only_so_many_rows_are_shown(tmp_path, capsys):
    assert main(["grade", lines(tmp_path / "a.jsonl", ROWS[:2] * 3), "--rows", "2"]) == 0
    assert "4 further rows: --rows 6 shows them." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "none of the ground truths (the ground truth holds no number"),
        (
            ["--ground-truth", "truth"],
            "there is no column truth; found response, ground_truth. Name it: --ground-truth",
        ),
        (["--reward-function", "mth"], "Did you mean `math`"),
    ],
)
def test_mistakes_are_answered(tmp_path, capsys, words, problem):
    path = lines(tmp_path / "a.jsonl", [{"response": "1", "ground_truth": "none"}])
    assert main(["grade", path, "--reward-function", "gsm8k", *words]) == 2
    assert problem in capsys.readouterr().err


def test_any_kind_of_file_is_read(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("response,answer\n\\boxed{7},7\n\\boxed{8},7\n")
    assert main(["grade", str(tmp_path / "a.csv")]) == 0
    assert "1 of 2 responses are correct" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[1]\n", "{", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys, text):
    path = tmp_path / "a.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert main(["grade", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_every_outcome_can_be_asked_for():
    assert set(OUTCOMES) == {outcome.value for outcome in Outcome}
