"""The response that a person is shown, with the advantage it trains with."""

from __future__ import annotations

import numpy as np
import pytest

from hpt_ray.algorithms import ALGORITHMS, BatchShape, make_estimator
from hpt_ray.algorithms.gates import samples_of
from hpt_ray.driver.step_metrics import responses_of
from hpt_ray.learner.scoring import weight_samples
from hpt_ray.types import (
    Decision,
    Demonstration,
    FinishReason,
    Group,
    Outcome,
    Prompt,
    RewardResult,
    Rollout,
)


def first_response(*pair):
    return next(responses_of(*pair), None)


ROLLOUTS, BOTH, DEMO = (Decision(*weights, 2, 4, "always") for weights in ((1, 0), (1, 1), (0, 1)))


def group(*, first: FinishReason = FinishReason.STOP) -> Group:
    ids = np.array([5, 6], np.int32)
    prompt = Prompt("p/0", ids, "What?", "4", "p", Demonstration(np.array([7, 8, 2], np.int32), "4"))
    rollouts = [
        Rollout(
            "p/0", i, np.arange(i + 1, dtype=np.int32), np.zeros(i + 1, np.float32), finish, 0, f"text {i}"
        )
        for i, finish in enumerate([first, *[FinishReason.STOP] * 3])
    ]
    scores = (0.0, 1.0, 1.0, 0.25)
    return Group(prompt, rollouts, [RewardResult(score, Outcome.WRONG) for score in scores])


@pytest.mark.parametrize("decision", [ROLLOUTS, BOTH], ids=["rollouts", "both"])
@pytest.mark.parametrize(
    "name", ["grpo", "dr_grpo", "rloo", "reinforce", "dapo", "gspo", "luffy", "srft", "hpt"]
)
def test_the_advantage_is_the_one_that_trains(name: str, decision: Decision) -> None:
    estimator = make_estimator(name)
    shown = first_response(group(), decision, estimator)
    assert shown is not None
    assert shown.rollout.text == "text 0"
    weighed = weight_samples(estimator, samples_of(group(), decision, index=0), BatchShape(1, 4, 8))
    trained = next(item for item in weighed.samples if not item.sample.is_demo and item.sample.reward == 0)
    term = [term.stream for term in estimator.terms].index("rollouts")
    if shown.advantage is None:
        assert estimator.needs_all_samples
    else:
        assert shown.advantage == pytest.approx(trained.advantages[term, 0])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_response_is_shown_whatever_the_algorithm(name: str) -> None:
    for decision in (ROLLOUTS, BOTH, DEMO):
        shown = [*responses_of(group(), decision, make_estimator(name))]
        assert [one.rollout.text for one in shown] == [f"text {i}" for i in range(4)]


def test_there_is_none_where_the_group_does_not_decide_it() -> None:
    for estimator, decision in [
        (make_estimator("ppo"), ROLLOUTS),
        (make_estimator("sft"), ROLLOUTS),
        (make_estimator("grpo"), DEMO),
        (make_estimator("grpo", kl_coef=0.1, kl_in="reward"), ROLLOUTS),
    ]:
        shown = first_response(group(), decision, estimator)
        assert shown is not None
        assert shown.advantage is None


def test_a_response_whose_reward_failed_has_none() -> None:
    failed = group()
    failed.results[0] = RewardResult(0.0, Outcome.ERROR)
    shown = first_response(failed, ROLLOUTS, make_estimator("grpo"))
    assert shown is not None
    assert (shown.rollout.text, shown.advantage) == ("text 0", None)


def test_a_lost_response_is_passed_over() -> None:
    lost = group(first=FinishReason.LOST)
    shown = first_response(lost, ROLLOUTS, make_estimator("grpo"))
    assert shown is not None
    assert shown.rollout.text == "text 1"
    assert shown.advantage == pytest.approx(0.25 / (np.std([1, 1, 0.25], ddof=1) + 1e-6))
    assert first_response(Group(lost.prompt, [], []), ROLLOUTS, make_estimator("grpo")) is None
