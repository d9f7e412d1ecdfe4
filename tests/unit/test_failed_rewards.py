"""Responses whose reward failed: counted and shown, never a reward of 0, and at some share the end of the run."""

import numpy as np
import pytest

from hpt_ray.algorithms.gates import Attempt, attempt_of, samples_of
from hpt_ray.checkpoint.state import RunState
from hpt_ray.config.schema import Config
from hpt_ray.driver.limits import reason_to_stop, too_many_failures
from hpt_ray.driver.step_metrics import rollout_metrics
from hpt_ray.errors import RewardsFailed
from hpt_ray.observe.metrics import unknown_metrics
from hpt_ray.observe.rollout_dump import read_rollouts
from hpt_ray.types import Decision, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

ROLLOUTS = Decision(1.0, 0.0, 1, 4, "solved")


def make_group(*results: RewardResult) -> Group:
    prompt = Prompt("set/0", np.array([1, 9], np.int32), "q", "4", "set")
    ids, logprobs = np.array([5, 2], np.int32), np.array([-0.5, -0.1], np.float32)
    rollouts = [
        Rollout("set/0", i, ids, logprobs, FinishReason.STOP, 3, f"response {i}") for i in range(len(results))
    ]
    return Group(prompt, rollouts, list(results))


RIGHT = RewardResult(1.0, Outcome.CORRECT, metrics={"format": 1.0})
WRONG = RewardResult(0.0, Outcome.WRONG, metrics={"format": 0.0, "length": 3.0})
FAILED = RewardResult(0.0, Outcome.ERROR, detail="ValueError: odd answer")
LATE = RewardResult(0.0, Outcome.TIMEOUT, detail="not graded within 10 s")


@pytest.mark.parametrize("failed", [FAILED, LATE])
def test_a_response_without_reward_does_not_train_and_says_nothing_about_the_prompt(failed):
    group = make_group(RIGHT, failed, WRONG, failed)
    assert [sample.reward for sample in samples_of(group, ROLLOUTS, index=0)] == [1.0, 0.0]
    assert attempt_of(group) == Attempt(num_correct=1, num_responses=2)
    assert samples_of(make_group(failed, failed), ROLLOUTS, index=0) == []


def test_the_line_of_the_step_counts_failures_and_keeps_them_out_of_the_mean():
    line = rollout_metrics([(make_group(RIGHT, FAILED, WRONG, LATE), ROLLOUTS)], 1.0)
    assert line["reward/mean"] == 0.5
    assert line["reward/failure_share"] == 0.5
    assert (line["reward/outcome/error"], line["reward/outcome/timeout"]) == (1, 1)
    assert line["reward/metric/format"] == 0.5
    assert line["reward/metric/length"] == 3.0
    assert unknown_metrics(line) == []
    nothing = rollout_metrics([(make_group(FAILED), ROLLOUTS)], 1.0)
    assert (nothing["reward/mean"], nothing["reward/failure_share"]) == (None, 1.0)
    assert rollout_metrics([(make_group(RIGHT), ROLLOUTS)], 1.0)["reward/failure_share"] == 0.0


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (0.24, True), (0.25, False), (1.0, False)])
def test_the_limit_is_a_share_of_the_responses_of_the_step(limit, stops):
    pairs = [(make_group(RIGHT, WRONG, FAILED, RIGHT), ROLLOUTS)]
    assert (too_many_failures(pairs, limit) is not None) == stops
    assert too_many_failures([(make_group(FAILED, LATE), ROLLOUTS)], 1.0) is None
    assert too_many_failures([(make_group(), ROLLOUTS)], 0.0) is None


def test_the_error_says_how_many_failed_why_and_where_the_responses_are(tmp_path):
    pairs = [(make_group(RIGHT, LATE, FAILED), ROLLOUTS)]
    state = RunState(step=7, version=7, sampler={})
    error = reason_to_stop(Config(), state, pairs, tmp_path)
    assert isinstance(error, RewardsFailed)
    for words in ("2 of 3 responses", "reward.max_failure_share=0.1", "ValueError: odd answer", "step 7"):
        assert words in str(error)
    [dump] = tmp_path.iterdir()
    assert str(dump) in str(error)
    assert [line["detail"] for line in read_rollouts(dump)] == [None, LATE.detail, FAILED.detail]
    assert reason_to_stop(Config(), state, [(make_group(RIGHT, WRONG), ROLLOUTS)], tmp_path) is None
