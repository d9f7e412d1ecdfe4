"""The gate on counts, and the samples a decision turns into."""

from __future__ import annotations

import itertools
import json
from math import comb

import numpy as np
import pytest

from hpt_ray.algorithms import BatchShape, make_estimator
from hpt_ray.algorithms.gates import (
    GATES,
    Attempt,
    attempt_of,
    is_certain,
    posterior,
    samples_of,
    threshold,
)
from hpt_ray.driver.step_metrics import selection_metrics
from hpt_ray.learner.scoring import weight_samples
from hpt_ray.observe.prompt_history import PromptHistory
from hpt_ray.types import Decision, Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

FEEDBACK = [name for name, gate in GATES.items() if gate.by_results]


def make_group(num_correct: int, n: int = 8, *, with_demo: bool = True) -> Group:
    demo = Demonstration(np.array([7, 2], np.int32), "x") if with_demo else None
    prompt = Prompt("set/0", np.array([1, 9], np.int32), "q", "4", "set", demo)
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
    results = [
        RewardResult(1.0, Outcome.CORRECT) if i < num_correct else RewardResult(0.0, Outcome.WRONG)
        for i in range(n)
    ]
    return Group(prompt, rollouts, results)


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
        decision = GATES["switch"].function(make_group(solved), gamma, ())
        expected = (0.0, 1.0) if solved <= last_demo else (1.0, 0.0)
        assert (decision.rollout_weight, decision.demo_weight) == expected
        assert (decision.num_correct, decision.num_rollouts) == (solved, 8)


def test_switch_without_demonstrations_is_plain_rl() -> None:
    decision = GATES["switch"].function(make_group(0, with_demo=False), 0.0, ())
    assert (decision.rollout_weight, decision.demo_weight, decision.reason) == (1.0, 0.0, "no_demonstration")


def test_negative_gamma_never_asks_for_demonstrations() -> None:
    assert GATES["switch"].function(make_group(0), -1.0, ()).demo_weight == 0.0


@pytest.mark.parametrize("gamma", [0.0, 1 / 8, 2 / 8, 4 / 8, 1.0])
def test_an_early_decision_is_the_late_one(gamma: float) -> None:
    """Over every order of results: what is certain early is what the full group decides."""
    for bits in range(2**8):
        results = [bits >> i & 1 for i in range(8)]
        decision = GATES["switch"].function(make_group(sum(results)), gamma, ())
        for graded in range(9):
            solved = sum(results[:graded])
            if is_certain(gamma, num_correct=solved, num_graded=graded, num_rollouts=8):
                assert decision.demo_weight == 1.0
        settled = [is_certain(gamma, num_correct=sum(results), num_graded=8, num_rollouts=8)]
        assert settled == [decision.demo_weight == 1.0]


FAILED = RewardResult(0.0, Outcome.TIMEOUT)


def fail(group: Group, *samples: int) -> Group:
    for i in samples:
        group.results[i] = FAILED
    return group


@pytest.mark.parametrize("gamma", [0.0, 2 / 5, 1.0])
def test_an_early_decision_stands_whatever_fails_later(gamma: float) -> None:
    """Over every order of right, wrong and failed: the results so far decide as all of them do."""
    outcomes = (RewardResult(1.0, Outcome.CORRECT), RewardResult(0.0, Outcome.WRONG), FAILED)
    for results in itertools.product(outcomes, repeat=5):
        group = make_group(0, n=5)
        group.results[:] = results
        for graded in range(6):
            seen = results[:graded]
            solved = sum(result.correct for result in seen)
            if FAILED not in seen and is_certain(
                gamma, num_correct=solved, num_graded=graded, num_rollouts=5
            ):
                early = make_group(0, n=5)
                early.results[:graded] = seen
                lose(early, *range(graded, 5))
                for one in (group, early):
                    assert GATES["switch"].function(one, gamma, ()).demo_weight == 1.0


@pytest.mark.parametrize(
    ("gate", "gamma", "expected"),
    [("switch", 2 / 8, (1, 0)), ("linear", 0, (1 / 2, 1 / 2)), ("official_soft", 0, (1, 0))],
)
def test_a_failed_reward_is_not_a_wrong_answer(
    gate: str, gamma: float, expected: tuple[float, float]
) -> None:
    """2 of 8 correct ask for the demonstration; 2 of the 4 that have a reward do not."""
    assert GATES[gate].function(make_group(2), gamma, ()).demo_weight > 0
    decision = GATES[gate].function(fail(make_group(2), 4, 5, 6, 7), gamma, ())
    assert (decision.rollout_weight, decision.demo_weight) == expected
    assert (decision.num_correct, decision.num_rollouts) == (2, 8)


def test_a_prompt_without_any_reward_is_unsolved_and_a_negative_gamma_still_never_asks() -> None:
    nothing = fail(make_group(0), *range(8))
    for gate in ("switch", "linear", "official_soft"):
        assert GATES[gate].function(nothing, 0.0, ()).demo_weight == 1.0
    assert GATES["switch"].function(nothing, -1.0, ()).demo_weight == 0.0


def test_fixed_gates() -> None:
    group, without = make_group(3), make_group(3, with_demo=False)
    fixed = {name: gate for name, gate in GATES.items() if not gate.by_results}
    weights = {
        name: (d.rollout_weight, d.demo_weight)
        for name, g in fixed.items()
        for d in [g.function(group, 0.0, ())]
    }
    assert weights == {
        "rollouts": (1.0, 0.0),
        "demonstrations": (0.0, 1.0),
        "both": (1.0, 1.0),
        "prefixes": (1.0, 0.0),
    }
    nothing = GATES["demonstrations"].function(without, 0.0, ())
    assert (nothing.rollout_weight, nothing.demo_weight, nothing.reason) == (0.0, 0.0, "no_demonstration")


@pytest.mark.parametrize("gate", FEEDBACK)
def test_a_prompt_without_a_demonstration_keeps_its_rollouts_whole(gate: str) -> None:
    decisions = [GATES[gate].function(make_group(k, with_demo=False), 1 / 8, ()) for k in range(9)]
    assert {(d.rollout_weight, d.demo_weight) for d in decisions} == {(1.0, 0.0)}
    assert decisions[0].reason == "no_demonstration"
    assert decisions[8].reason == "solved"


def test_linear_is_the_share_of_answers_that_are_right() -> None:
    weights = [
        (d.rollout_weight, d.demo_weight)
        for k in range(9)
        for d in [GATES["linear"].function(make_group(k), 0, ())]
    ]
    assert weights == [(k / 8, 1 - k / 8) for k in range(9)]
    group = make_group(2)
    lose(group, 6, 7)
    assert GATES["linear"].function(group, 0.0, ()).rollout_weight == 2 / 6


def test_official_soft_is_the_table_of_the_code_without_the_demonstration() -> None:
    """hpt.md 3.3, type 2: (on, sft) by solved samples, of which the demonstration is one."""
    table = {1: (0, 1), 2: (1 / 8, 1 / 2), 3: (1 / 4, 1 / 4), 4: (1 / 2, 1 / 8), 5: (1, 0), 8: (1, 0)}
    for samples, expected in table.items():
        decision = GATES["official_soft"].function(make_group(samples - 1, n=7), 0.0, ())
        assert (decision.rollout_weight, decision.demo_weight) == expected


def by_hand(gamma: float, right: int, wrong: int) -> float:
    """Pr(p ≤ γ) under Beta(1 + right, 1 + wrong), as a binomial tail: no incomplete beta function in it."""
    n = right + wrong + 1
    return sum(comb(n, k) * gamma**k * (1 - gamma) ** (n - k) for k in range(right + 1, n + 1))


@pytest.mark.parametrize("gamma", [1 / 8, 2 / 8, 4 / 8])
def test_posterior_of_a_first_attempt_is_a_binomial_tail(gamma: float) -> None:
    for solved in range(9):
        decision = posterior(make_group(solved), gamma, ())
        beta = by_hand(gamma, solved, 8 - solved)
        beta = 0.0 if beta < 1e-3 else 1.0 if beta > 1 - 1e-3 else beta
        assert decision.demo_weight == pytest.approx(beta, abs=1e-12)
        assert decision.rollout_weight == pytest.approx(1 - beta, abs=1e-12)


def test_posterior_counts_an_earlier_attempt_half() -> None:
    """0 of 8 two attempts ago and 4 of 8 at the last one: 1 · 0 + ½ · 4 + ¼ · 0 right, 8 + ½ · 4 + ¼ · 8 wrong."""
    beta = posterior(make_group(0), 1 / 8, [Attempt(0, 8), Attempt(4, 8)]).demo_weight
    assert beta == pytest.approx(by_hand(1 / 8, 2, 12), abs=1e-12)


def test_posterior_is_not_shut_by_one_lucky_hit_nor_by_many_failures() -> None:
    failures = [Attempt(0, 8)] * 50
    lucky = posterior(make_group(1), 1 / 8, failures)
    assert lucky.demo_weight == pytest.approx(by_hand(1 / 8, 1, 15), abs=1e-9)  # 0.65
    assert lucky.demo_weight > 0.6
    assert lucky.rollout_weight > 0.3
    for gamma in (1 / 8, 2 / 8, 3 / 8):
        assert posterior(make_group(1), gamma, failures).rollout_weight > 0
    solved_before = [Attempt(8, 8)] * 50
    assert posterior(make_group(0), 1 / 8, [*solved_before, *[Attempt(0, 8)] * 6]).demo_weight > 0.85


def test_posterior_without_an_answer_keeps_to_what_it_knew() -> None:
    group = make_group(0)
    lose(group, *range(8))
    assert attempt_of(group) == (0, 0)
    assert posterior(group, 1 / 8, ()).demo_weight == pytest.approx(1 / 8)


def lose(group: Group, *samples: int) -> None:
    for i in samples:
        group.rollouts[i] = Rollout.missing("set/0", i, FinishReason.LOST)
        group.results[i] = RewardResult(0.0, Outcome.NO_ANSWER)


def test_a_weight_that_is_negligible_costs_no_sample() -> None:
    group = make_group(6)
    decision = posterior(group, 1 / 8, ())
    assert (decision.rollout_weight, decision.demo_weight, decision.reason) == (
        1.0,
        0.0,
        "solved",
    )
    assert not any(sample.is_demo for sample in samples_of(group, decision, index=0))


def test_soft_weights_reach_every_term_of_the_loss() -> None:
    """α·L_RL + β·L_SFT (paper, Eq 13): each sample's scale is its weight over a Z that does not know the weights."""
    group = make_group(2)
    whole = {stream: scales(group, Decision(*weights, 2, 8, "x")) for stream, weights in
             (("rollouts", (1.0, 0.0)), ("demonstration", (0.0, 1.0)))}  # fmt: skip
    soft = posterior(group, 2 / 8, ())
    assert 0 < soft.demo_weight < soft.rollout_weight < 1
    expected = [soft.rollout_weight * s for s in whole["rollouts"]]
    expected += [soft.demo_weight * s for s in whole["demonstration"]]
    assert scales(group, soft) == pytest.approx(expected)


def scales(group: Group, decision: Decision) -> list[float]:
    estimator = make_estimator("hpt", rollout_coef=4.0, demo_loss_aggregation="token-mean")
    samples = samples_of(group, decision, index=0)
    weighed = weight_samples(estimator, samples, BatchShape(2, 8, 16)).samples
    return [float(np.abs(item.scales).sum()) for item in weighed]


def test_the_offline_ratio_is_a_share_of_weight() -> None:
    pairs = [
        (make_group(k), Decision(a, b, k, 8, "x"))
        for k, a, b in ((0, 0.3, 0.7), (3, 1.0, 0.0), (0, 0.5, 0.5))
    ]
    assert selection_metrics(pairs, [])["selection/demo_share"] == pytest.approx(1.2 / 3)
    hard = [(make_group(k), GATES["switch"].function(make_group(k), 0.0, ())) for k in (0, 0, 3, 8)]
    metrics = selection_metrics(hard, [])
    assert metrics["selection/demo_share"] == metrics["selection/demo_prompt_ratio"] == 0.5


def test_samples_of_a_gated_batch_count_as_the_official_code_counts() -> None:
    """128 prompts, n = 8, a of them gated: 1024 − 7a samples (hpt.md 6.5: a = 64 gives a ratio of 0.1111)."""
    gate = GATES["switch"].function
    groups = [make_group(0 if i < 64 else 5) for i in range(128)]
    samples = [sample for i, g in enumerate(groups) for sample in samples_of(g, gate(g, 0.0, ()), index=i)]
    demos = sum(sample.is_demo for sample in samples)
    assert len(samples) == 1024 - 7 * 64
    assert round(demos / len(samples), 4) == 0.1111


def test_samples_carry_what_the_learner_needs() -> None:
    group = make_group(1)
    rollout, *_, demo = samples_of(group, Decision(0.5, 0.25, 1, 8, "x"), index=4)
    assert rollout.token_ids.tolist() == [1, 9, 5, 2]
    assert (rollout.prompt_length, rollout.response_length, rollout.reward, rollout.weight) == (
        2,
        2,
        1.0,
        0.5,
    )
    assert demo.token_ids.tolist() == [1, 9, 7, 2]
    assert (demo.is_demo, demo.reward, demo.weight, demo.group) == (True, 1.0, 0.25, 4)
    assert np.isnan(demo.old_logprobs).all()


def test_lost_and_aborted_rollouts_carry_no_samples() -> None:
    group = make_group(8, n=3)
    group.rollouts[0] = Rollout(
        "set/0", 0, np.array([], np.int32), np.array([], np.float32), FinishReason.LOST, 3, ""
    )
    group.rollouts[1] = Rollout(
        "set/0", 1, np.array([5], np.int32), np.array([-1], np.float32), FinishReason.ABORT, 3, ""
    )
    assert len(samples_of(group, Decision(1.0, 0.0, 3, 3, "solved"), index=0)) == 1


def test_the_history_of_prompts_has_one_line_an_attempt_and_forgets_what_is_done_again(tmp_path) -> None:
    log = PromptHistory(tmp_path / "prompt_history.jsonl")
    for step in (1, 2, 3):
        group = make_group(step)
        log.append(step, [(group, GATES["switch"].function(group, 0.0, ()))])
    log.cut_after(2)
    lines = [json.loads(line) for line in (tmp_path / "prompt_history.jsonl").read_text().splitlines()]
    assert [(line["step"], line["correct"], line["reason"]) for line in lines] == [
        (1, 1, "solved"),
        (2, 2, "solved"),
    ]
