"""What a reward function gives back is checked once, in the grading process: it is sane, or counted as failed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpt_ray.algorithms.gates import GATES
from hpt_ray.observe.rollout_dump import read_rollouts, write_rollouts
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.types import FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

REWARDS = """
from hpt_ray.types import Outcome, RewardResult

class Unprintable(Exception):
    def __str__(self):
        raise TypeError("no text")

class Word(str):
    def __str__(self):
        return "shown"

def grade(response, ground_truth):
    match response:
        case "plain outcome": return RewardResult(1.0, "correct")
        case "unknown outcome": return RewardResult(1.0, "fine")
        case "outcome in a dict": return {"score": 1.0, "outcome": ["correct"]}
        case "text as a score": return RewardResult("1.0", Outcome.CORRECT)
        case "no score": return RewardResult(None, Outcome.CORRECT)
        case "nan": return RewardResult(float("nan"), Outcome.CORRECT)
        case "nan in a dict": return {"score": float("nan")}
        case "huge": return 1e308
        case "minus huge": return RewardResult(-1e308, Outcome.WRONG)
        case "digits": return 10**5000
        case "digits in a dict": return {"score": 1, "detail": 10**5000}
        case "metrics": return RewardResult(1.0, Outcome.CORRECT, metrics=[1])
        case "odd metrics": return RewardResult(
            1.0,
            Outcome.CORRECT,
            metrics={"a/b": 1, "\\ud800": 2, "n" * 1000: 3, "nan": float("nan"), "x": 1e300, "t": "?"},
        )
        case "surrogates": return RewardResult(0.5, Outcome.WRONG, "\\ud800", "\\udfff" * 1000)
        case "surrogates raised": raise ValueError("\\ud800")
        case "unprintable": raise Unprintable
        case "long": return RewardResult(0.5, Outcome.WRONG, "x" * 10**7, "y" * 5 * 10**7)
        case "wrong types": return RewardResult(True, Outcome.CORRECT, 12, ["a"])
        case "own types": return RewardResult(1, Outcome.CORRECT, Word("hidden"), Word("hidden"))
        case "nothing": return None
"""

FAILURES = {
    "unknown outcome": "its outcome is 'fine'; there are correct, wrong",
    "outcome in a dict": "its outcome is ['correct']; there are correct, wrong",
    "text as a score": "its score is '1.0', a str, and no number",
    "no score": "its score is None, a NoneType, and no number",
    "nan": "score is nan; it must lie within ±1e+09",
    "nan in a dict": "score is nan",
    "huge": "score is 1e+308; it must lie within ±1e+09",
    "minus huge": "score is -1e+308",
    "digits": "score is inf",
    "digits in a dict": "Exceeds the limit",
    "metrics": "its metrics are a list, and no dict",
    "surrogates raised": "ValueError: \\ud800",
    "unprintable": "Unprintable",
    "nothing": "it returned None",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, RewardResult]:
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    words = [*FAILURES, "plain outcome", "odd metrics", "surrogates", "long", "wrong types", "own types"]
    with Pool(1) as pool:
        found = pool.grade([Task(f"python:{file}:grade", word, "") for word in words])
        assert pool.num_replaced == 0
    return dict(zip(words, found, strict=True))


@pytest.mark.parametrize("word", FAILURES)
def test_what_cannot_be_used_is_a_failed_reward_with_its_reason(results, word: str) -> None:
    result = results[word]
    assert (result.score, result.outcome) == (0.0, Outcome.ERROR)
    assert FAILURES[word] in (result.detail or "")


def test_what_can_be_used_comes_out_plain_and_short(results) -> None:
    assert results["plain outcome"] == RewardResult(1.0, Outcome.CORRECT)
    assert results["plain outcome"].correct
    odd = {"a_b": 1.0, "\\ud800": 2.0, "n" * 100: 3.0}
    assert results["odd metrics"] == RewardResult(1.0, Outcome.CORRECT, metrics=odd)
    assert results["surrogates"] == RewardResult(0.5, Outcome.WRONG, "\\ud800", ("\\udfff" * 1000)[:300])
    assert results["long"] == RewardResult(0.5, Outcome.WRONG, "x" * 500 + "…", "y" * 300)
    assert results["wrong types"] == RewardResult(1.0, Outcome.CORRECT, "12", "['a']")
    assert type(results["wrong types"].score) is float
    assert results["own types"] == RewardResult(1.0, Outcome.CORRECT, "shown", "shown")
    assert type(results["own types"].detail) is str


def test_the_rollouts_of_a_step_hold_any_text(tmp_path: Path) -> None:
    odd = "a\ud800\0\x1b[2J"
    prompt = Prompt("\ud800/1", np.array([1], np.int32), odd, [odd], odd)
    rollout = Rollout(
        prompt.id, 0, np.array([2], np.int32), np.zeros(1, np.float32), FinishReason.STOP, 1, odd
    )
    group = Group(prompt, [rollout], [RewardResult(0.0, Outcome.ERROR, odd, odd)])
    decision = GATES["rollouts"].function(group, 0.0, [])
    (line,) = read_rollouts(write_rollouts(tmp_path, 1, [(group, decision)]))
    assert line["text"] == line["detail"] == line["extracted"] == line["prompt"] == "a\\ud800\0\x1b[2J"
    assert line["prompt_id"] == "\\ud800/1"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001.parquet"]
