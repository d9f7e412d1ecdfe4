"""Which samples of a question are held back until its first right answer."""

from __future__ import annotations

import numpy as np

from hpt_ray.config.load import load_config
from hpt_ray.records import Demonstration, FinishReason, Group, Outcome, Question, Rollout, Verdict
from hpt_ray.reward.groups import GroupStream
from hpt_ray.rollout.requests import Sampling
from hpt_ray.selection.gate import is_certain
from hpt_ray.stream import Batch, BatchStream

N = 8


def question(name: str, *, with_demonstration: bool = True) -> Question:
    demonstration = Demonstration(np.array([5, 2], np.int32), "5") if with_demonstration else None
    return Question(name, np.array([1], np.int32), name, "5", "set", demonstration)


def group(asked: Question, solved: int) -> Group:
    right, wrong = Verdict(1.0, Outcome.CORRECT), Verdict(0.0, Outcome.WRONG)
    tokens = np.array([5, 2], np.int32), np.zeros(2, np.float32)
    rollouts = [Rollout(asked.id, i, *tokens, FinishReason.STOP, 0, "5") for i in range(N)]
    return Group(asked, rollouts, [right] * solved + [wrong] * (N - solved))


def stream(gamma: float) -> BatchStream:
    def certain(asked: Question, num_solved: int, num_graded: int) -> bool:
        return asked.demonstration is not None and is_certain(
            gamma, num_solved=num_solved, num_graded=num_graded, num_rollouts=N
        )

    return BatchStream(
        load_config(None, ["questions_per_step=1", "rollouts_per_question=8", "model.path=mini:t"]),
        [question("a"), question("b")],  # type: ignore[arg-type]
        num_rollouts=N,
        sampling=Sampling(1.0, 1.0, -1, 8, (2,)),
        is_certain=certain,
    )


def held(batches: BatchStream, asked: Question) -> int:
    return batches._num_held(asked)


def test_as_many_are_held_as_the_decision_can_do_without() -> None:
    assert [held(stream(gamma), question("a")) for gamma in (0, 1 / 8, 2 / 8, 4 / 8)] == [0, 1, 2, 4]


def test_nothing_is_held_of_a_question_without_a_demonstration() -> None:
    assert held(stream(4 / 8), question("a", with_demonstration=False)) == 0


def test_nothing_is_held_where_a_right_answer_is_likely() -> None:
    batches = stream(4 / 8)
    solved, unsolved = question("solved"), question("unsolved")
    batch = Batch(1, [], GroupStream(), None, batches.position)
    done = [group(solved, 3), group(unsolved, 0), group(question("c"), 1)]
    batches.done(batch, done)
    assert held(batches, solved) == 0
    assert held(batches, unsolved) == 4
    assert held(batches, question("new")) == 0  # most of the last step had a right answer
    batches.done(batch, [group(question("d"), 0)])
    assert held(batches, question("new")) == 4
