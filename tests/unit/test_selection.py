"""The gate on counts, and the rows a decision turns into."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hpt_ray.records import Decision, Demonstration, FinishReason, Group, Outcome, Question, Rollout, Verdict
from hpt_ray.selection.feedback import FeedbackLog
from hpt_ray.selection.gate import GATES, is_certain, threshold
from hpt_ray.selection.rows import rows_of


def make_group(num_solved: int, n: int = 8, *, with_demo: bool = True) -> Group:
    demo = Demonstration(np.array([7, 2], np.int32), "x") if with_demo else None
    question = Question("set/0", np.array([1, 9], np.int32), "q", "4", "set", demo)
    rollouts = [
        Rollout(
            "set/0",
            i,
            np.array([5, 2], np.int32),
            np.array([-0.5, -0.1], np.float32),
            FinishReason.STOP,
            3,
            "5",
        )
        for i in range(n)
    ]
    verdicts = [
        Verdict(1.0, Outcome.CORRECT) if i < num_solved else Verdict(0.0, Outcome.WRONG) for i in range(n)
    ]
    return Group(question, rollouts, verdicts)


@pytest.mark.parametrize(
    ("gamma", "n", "expected"),
    [
        (0, 8, 0),
        (2 / 8, 8, 2),
        (1, 8, 8),
        (-1, 8, -8),
        (1 / 3, 3, 1),
        (0.1, 10, 1),
        (0.3, 10, 3),
        (0.7, 10, 7),
    ],
)
def test_threshold_is_the_count_that_is_meant(gamma: float, n: int, expected: int) -> None:
    assert threshold(gamma, n) == expected


@pytest.mark.parametrize(("gamma", "last_demo"), [(0.0, 0), (2 / 8, 2)])
def test_switch_decides_at_every_count_as_the_paper_does(gamma: float, last_demo: int) -> None:
    for solved in range(9):
        decision = GATES["switch"](make_group(solved), gamma)
        expected = (0.0, 1.0) if solved <= last_demo else (1.0, 0.0)
        assert (decision.rollout_weight, decision.demo_weight) == expected
        assert (decision.num_solved, decision.num_rollouts) == (solved, 8)


def test_switch_without_demonstrations_is_plain_rl() -> None:
    decision = GATES["switch"](make_group(0, with_demo=False), 0.0)
    assert (decision.rollout_weight, decision.demo_weight, decision.reason) == (1.0, 0.0, "no_demonstration")


def test_negative_gamma_never_asks_for_demonstrations() -> None:
    assert GATES["switch"](make_group(0), -1.0).demo_weight == 0.0


@pytest.mark.parametrize("gamma", [0.0, 1 / 8, 2 / 8, 4 / 8, 1.0])
def test_an_early_decision_is_the_late_one(gamma: float) -> None:
    """Over every order of verdicts: what is certain early is what the full group decides."""
    for bits in range(2**8):
        verdicts = [bits >> i & 1 for i in range(8)]
        decision = GATES["switch"](make_group(sum(verdicts)), gamma)
        for graded in range(9):
            solved = sum(verdicts[:graded])
            if is_certain(gamma, num_solved=solved, num_graded=graded, num_rollouts=8):
                assert decision.demo_weight == 1.0
        settled = [is_certain(gamma, num_solved=sum(verdicts), num_graded=8, num_rollouts=8)]
        assert settled == [decision.demo_weight == 1.0]


def test_fixed_gates() -> None:
    group, without = make_group(3), make_group(3, with_demo=False)
    weights = {name: (d.rollout_weight, d.demo_weight) for name, g in GATES.items() for d in [g(group, 0.0)]}
    assert weights == {
        "switch": (1.0, 0.0),
        "rollouts": (1.0, 0.0),
        "demonstrations": (0.0, 1.0),
        "both": (1.0, 1.0),
    }
    nothing = GATES["demonstrations"](without, 0.0)
    assert (nothing.rollout_weight, nothing.demo_weight, nothing.reason) == (0.0, 0.0, "no_demonstration")


def test_rows_of_a_gated_batch_count_as_the_official_code_counts() -> None:
    """128 questions, n = 8, a of them gated: 1024 − 7a rows (hpt.md 6.5: a = 64 gives a ratio of 0.1111)."""
    gate = GATES["switch"]
    groups = [make_group(0 if i < 64 else 5) for i in range(128)]
    rows = [row for i, g in enumerate(groups) for row in rows_of(g, gate(g, 0.0), index=i)]
    demos = sum(row.is_demo for row in rows)
    assert len(rows) == 1024 - 7 * 64
    assert round(demos / len(rows), 4) == 0.1111


def test_rows_carry_what_the_learner_needs() -> None:
    group = make_group(1)
    rollout, *_, demo = rows_of(group, Decision(0.5, 0.25, 1, 8, "x"), index=4)
    assert rollout.token_ids.tolist() == [1, 9, 5, 2]
    assert (rollout.prompt_length, rollout.response_length, rollout.reward, rollout.weight) == (
        2,
        2,
        1.0,
        0.5,
    )
    assert demo.token_ids.tolist() == [1, 9, 7, 2]
    assert (demo.is_demo, demo.reward, demo.weight, demo.group) == (True, 1.0, 0.25, 4)
    assert np.isnan(demo.logp_old).all()


def test_lost_and_aborted_rollouts_carry_no_rows() -> None:
    group = make_group(8, n=3)
    group.rollouts[0] = Rollout(
        "set/0", 0, np.array([], np.int32), np.array([], np.float32), FinishReason.LOST, 3, ""
    )
    group.rollouts[1] = Rollout(
        "set/0", 1, np.array([5], np.int32), np.array([-1], np.float32), FinishReason.ABORT, 3, ""
    )
    assert len(rows_of(group, Decision(1.0, 0.0, 3, 3, "solved"), index=0)) == 1


def test_feedback_has_one_line_a_visit_and_forgets_what_is_done_again(tmp_path) -> None:
    log = FeedbackLog(tmp_path / "feedback.jsonl")
    for step in (1, 2, 3):
        group = make_group(step)
        log.append(step, [(group, GATES["switch"](group, 0.0))])
    log.cut_after(2)
    lines = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text().splitlines()]
    assert [(line["step"], line["solved"], line["reason"]) for line in lines] == [
        (1, 1, "solved"),
        (2, 2, "solved"),
    ]
