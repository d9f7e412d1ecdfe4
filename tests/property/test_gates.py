"""What every feedback function promises, over arbitrary results and histories."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt_ray.algorithms.gates import GATES, NEGLIGIBLE, Attempt, posterior
from hpt_ray.types import Decision, Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

FEEDBACK = [name for name, gate in GATES.items() if gate.by_results]
PROPERTY = settings(max_examples=50, deadline=None, derandomize=True)
TOKENS = np.array([5, 2], np.int32), np.zeros(2, np.float32)
RIGHT, WRONG = RewardResult(1.0, Outcome.CORRECT), RewardResult(0.0, Outcome.WRONG)

gammas = st.floats(0.01, 0.99)
sizes = st.integers(1, 32)
histories = st.lists(sizes.flatmap(lambda n: st.builds(Attempt, st.integers(0, n), st.just(n))), max_size=12)


def group(solved: int, n: int) -> Group:
    prompt = Prompt("q", TOKENS[0], "q", "5", "set", Demonstration(TOKENS[0], "5"))
    rollouts = [Rollout("q", i, *TOKENS, FinishReason.STOP, 0, "5") for i in range(n)]
    return Group(prompt, rollouts, [RIGHT] * solved + [WRONG] * (n - solved))


def decisions(gate: str, n: int, gamma: float, history: list[Attempt]) -> list[Decision]:
    return [GATES[gate].function(group(solved, n), gamma, history) for solved in range(n + 1)]


@pytest.mark.parametrize("gate", FEEDBACK)
@PROPERTY
@given(n=sizes, gamma=gammas, history=histories)
def test_weights_are_shares_and_demonstrations_never_rise_with_success(gate, n, gamma, history) -> None:
    made = decisions(gate, n, gamma, history)
    for one in made:
        for weight in (one.rollout_weight, one.demo_weight):
            assert weight == 0 or NEGLIGIBLE <= weight <= 1
        assert one.rollout_weight + one.demo_weight > 0
    for fewer, more in itertools.pairwise(made):
        assert more.rollout_weight >= fewer.rollout_weight
        assert more.demo_weight <= fewer.demo_weight


@PROPERTY
@given(n=sizes, gamma=gammas, history=histories, data=st.data())
def test_a_better_history_never_asks_for_more_demonstrations(n, gamma, history, data) -> None:
    solved = data.draw(st.integers(0, n))
    better = [Attempt(attempt.num_responses, attempt.num_responses) for attempt in history]
    one, other = (posterior(group(solved, n), gamma, past) for past in (history, better))
    assert other.demo_weight <= one.demo_weight + 1e-12


@PROPERTY
@given(n=sizes, gamma=gammas, history=histories)
def test_what_is_long_past_is_forgotten(n, gamma, history) -> None:
    recent = [Attempt(0, n)] * 60
    for solved in range(n + 1):
        one, other = (posterior(group(solved, n), gamma, past) for past in ([*history, *recent], recent))
        assert one.demo_weight == pytest.approx(other.demo_weight, abs=1e-9)


@PROPERTY
@given(
    gamma=st.floats(0.05, 3 / 8),
    history=st.lists(st.builds(Attempt, st.integers(0, 8), st.just(8)), max_size=40),
)
def test_one_right_answer_of_eight_always_trains(gamma, history) -> None:
    """The bound of the docstring: no history can shut the rollouts of a prompt that is solved at times."""
    worst = posterior(group(1, 8), gamma, [Attempt(0, 8)] * 40).rollout_weight
    assert posterior(group(1, 8), gamma, history).rollout_weight >= worst - 1e-12 > 0
