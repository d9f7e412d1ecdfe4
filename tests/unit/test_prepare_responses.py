"""`hpt_ray prepare responses`: from the journal of an evaluation to files that a run reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpt_ray.data.prepare import main as prepare
from hpt_ray.data.sources import read_rows
from hpt_ray.evaluation.journal import Journal
from hpt_ray.types import FinishReason, Outcome, Prompt, RewardResult, Rollout

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+2?"}]
PROMPTS = {
    "math": Prompt("sums/train/7", np.array([1], np.int32), "…", "3", "sums", extra={"level": 2}, source=CHAT),
    "plain": Prompt("a:1", np.array([1], np.int32), "2+2?", [4, "four"], "", source="2+2?"),
}  # fmt: skip
# (benchmark, sample, text, outcome, whether it ended), in the order they came in.
ANSWERS = [
    ("plain", 1, "4", Outcome.CORRECT, True),
    ("math", 2, "3 ☃", Outcome.CORRECT, True),
    ("math", 3, "so 3 and on and", Outcome.CORRECT, False),
    ("math", 1, "three", Outcome.CORRECT, True),
    ("plain", 0, "5", Outcome.WRONG, True),
    ("math", 0, "4", Outcome.WRONG, True),
]


def evaluated(folder: Path, *, keep_text: bool) -> Path:
    journal = Journal(folder, {"benchmarks": {}}, {(name, q.id): 4 for name, q in PROMPTS.items()})
    for benchmark, sample, text, outcome, ended in ANSWERS:
        finish = FinishReason.STOP if ended else FinishReason.LENGTH
        rollout = Rollout("k", 0, np.zeros(1, np.int32), np.zeros(1, np.float32), finish, 0, text)
        result = RewardResult(0.0, outcome)
        journal.add(benchmark, PROMPTS[benchmark], sample, rollout, result, keep_text=keep_text)
    journal.close()
    return folder


def test_rows_are_what_was_asked_and_answered(tmp_path, capsys):
    folder = evaluated(tmp_path / "evaluation", keep_text=True)
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"benchmark": "math", "id"')  # being written
    assert prepare(["responses", "--source", str(folder), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[-2] for line in shown.splitlines() if "j" in line or "trunc" in line] == [
        "5",
        "2",
        "1",
    ]
    answers = [*read_rows(tmp_path / "out" / "responses.jsonl")]
    assert [(row.data_source, row.published_id, row.demonstration) for row in answers] == [
        ("sums", "train/7#0", "4"), ("sums", "train/7#1", "three"), ("sums", "train/7#2", "3 ☃"),
        ("", "a:1#0", "5"), ("", "a:1#1", "4"),
    ]  # fmt: skip
    assert [row.messages for row in answers[2:4]] == [CHAT, [{"role": "user", "content": "2+2?"}]]
    assert [row.ground_truth for row in answers[2:4]] == ["3", [4, "four"]]
    assert answers[0].extra["level"] == 2
    correct = [*read_rows(tmp_path / "out" / "correct.jsonl")]
    assert [(row.published_id, row.demonstration) for row in correct] == [
        ("train/7#1", "three"),
        ("a:1#1", "4"),
    ]
    assert [*(tmp_path / "out").glob(".*")] == []


@pytest.mark.parametrize("kept", [False, None])
def test_what_is_no_evaluation_with_texts_is_refused(tmp_path, capsys, kept):
    folder = tmp_path / "evaluation" if kept is None else evaluated(tmp_path / "evaluation", keep_text=kept)
    assert prepare(["responses", "--source", str(folder), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert ("no such file" if kept is None else "keep_texts=true") in said
    assert not (tmp_path / "out" / "responses.jsonl").exists()


def test_more_responses_than_a_line_each_are_no_matter_of_order(tmp_path):
    """The files are the same whatever order the responses came in."""
    one = evaluated(tmp_path / "one", keep_text=True)
    other = tmp_path / "other"
    other.mkdir()
    lines = (one / "samples.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
    (other / "samples.jsonl").write_text("".join(line + "\n" for line in reversed(lines)))
    for folder in (one, other):
        assert prepare(["responses", "--source", str(folder), "--out", str(folder / "rows")]) == 0
    for name in ("responses.jsonl", "correct.jsonl"):
        assert (one / "rows" / name).read_bytes() == (other / "rows" / name).read_bytes()
