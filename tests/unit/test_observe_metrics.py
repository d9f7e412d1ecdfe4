"""Metric names, averaging of sums and counts, and the summary of evaluations."""

import pytest

from hpt_ray.observe.metrics import (
    METRICS,
    branch_of,
    complete_line,
    missing_metrics,
    summarize_evaluations,
    unknown_metrics,
)
from hpt_ray.types import Decision


def test_placeholders_stand_for_any_name() -> None:
    known = ["step", "eval/math-500/mean", "eval/math/pass@1/mean", "reward/outcome/no_answer"]
    assert unknown_metrics(known) == []
    wrong = ["eval//mean", "reward/outcome/", "rewardxmean", "step "]
    assert unknown_metrics(wrong) == wrong


def test_a_completed_line_has_every_name_that_each_line_must_have() -> None:
    assert "reward/mean" in missing_metrics(["step"])
    line = complete_line({"step": 3, "reward/mean": 0.5})
    assert missing_metrics(line) == []
    assert (line["step"], line["reward/mean"], line["policy/entropy"]) == (3, 0.5, None)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize(
    ("rollout_weight", "demo_weight", "word"),
    [(1.0, 0.0, "rollouts"), (0.0, 1.0, "demonstration"), (0.5, 0.5, "both"), (0.0, 0.0, "nothing")],
)
def test_the_branch_of_a_decision(rollout_weight: float, demo_weight: float, word: str) -> None:
    assert branch_of(Decision(rollout_weight, demo_weight, 0, 8, "any")) == word


def test_first_best_and_last_evaluation_of_each_set() -> None:
    lines = [
        {"step": 0, "eval/id/mean": 0.2},
        {"step": 1, "reward/mean": 0.9},
        {"step": 5, "eval/id/mean": 0.8, "eval/ood/mean": 0.1, "eval/id/demonstration_loss": 2.0},
        {"step": 10, "eval/id/mean": 0.8, "eval/ood/mean": None},
        {"step": 15, "eval/id/mean": 0.7, "eval/math/500/mean": 0.5},
    ]
    assert summarize_evaluations(lines) == {
        "id": {
            "first": {"step": 0, "mean": 0.2},
            "best": {"step": 5, "mean": 0.8},
            "last": {"step": 15, "mean": 0.7},
        },
        "ood": {name: {"step": 5, "mean": 0.1} for name in ("first", "best", "last")},
        "math/500": {name: {"step": 15, "mean": 0.5} for name in ("first", "best", "last")},
    }
