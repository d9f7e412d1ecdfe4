"""Which samples of a prompt are held back until its first correct response, what is remembered, where a phase ends."""

from __future__ import annotations

import numpy as np

from hpt_ray.algorithms import estimator_from_config
from hpt_ray.algorithms.gates import Attempt
from hpt_ray.checkpoint.state import RunState
from hpt_ray.config.load import load_config
from hpt_ray.driver.batches import Batch, BatchStream
from hpt_ray.driver.setup import PreparedPhase
from hpt_ray.reward.groups import GroupStream
from hpt_ray.types import Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

N = 8


def prompt(name: str, *, with_demonstration: bool = True) -> Prompt:
    demonstration = Demonstration(np.array([5, 2], np.int32), "5") if with_demonstration else None
    return Prompt(name, np.array([1], np.int32), name, "5", "set", demonstration)


def group(asked: Prompt, solved: int) -> Group:
    right, wrong = RewardResult(1.0, Outcome.CORRECT), RewardResult(0.0, Outcome.WRONG)
    tokens = np.array([5, 2], np.int32), np.zeros(2, np.float32)
    rollouts = [Rollout(asked.id, i, *tokens, FinishReason.STOP, 0, "5") for i in range(N)]
    return Group(asked, rollouts, [right] * solved + [wrong] * (N - solved))


def stream(gamma: float, *words: str) -> BatchStream:
    sizes = ["prompts_per_step=1", f"group_size={N}", "model.path=mini:t", "run.steps=3"]
    config = load_config(None, [*sizes, f"selection.gamma={gamma}", *words])
    phase = PreparedPhase(
        number=1,
        before=10,
        config=config,
        prompts=[prompt("a"), prompt("b")],  # type: ignore[arg-type]
        estimator=estimator_from_config(config.algorithm),
        gate="switch",
        num_rollouts=int(config.group_size),
    )
    return BatchStream(phase, stop_token_ids=(2,))


def held(batches: BatchStream, asked: Prompt) -> int:
    return batches._num_held(asked)


def test_as_many_are_held_as_the_decision_can_do_without() -> None:
    assert [held(stream(gamma), prompt("a")) for gamma in (0, 1 / 8, 2 / 8, 4 / 8)] == [0, 1, 2, 4]


def test_nothing_is_held_of_a_prompt_without_a_demonstration() -> None:
    assert held(stream(4 / 8), prompt("a", with_demonstration=False)) == 0


def test_nothing_is_held_where_a_right_answer_is_likely() -> None:
    batches = stream(4 / 8)
    solved, unsolved = prompt("solved"), prompt("unsolved")
    batch = Batch(1, [], GroupStream(), None, batches.position)
    done = [group(solved, 3), group(unsolved, 0), group(prompt("c"), 1)]
    batches.done(batch, done)
    assert held(batches, solved) == 0
    assert held(batches, unsolved) == 4
    assert held(batches, prompt("new")) == 0  # most of the last step had a correct response
    batches.done(batch, [group(prompt("d"), 0)])
    assert held(batches, prompt("new")) == 4


def test_a_deterministic_run_decides_nothing_early() -> None:
    assert held(stream(4 / 8, "run.deterministic=true"), prompt("a")) == 0


def test_attempts_are_remembered_and_restored_but_not_those_without_an_answer(tmp_path) -> None:
    batches = stream(0)
    lost = group(prompt("lost"), 0)
    lost.rollouts[:] = [Rollout.missing("lost", i, FinishReason.LOST) for i in range(N)]
    batch = Batch(11, [], GroupStream(), None, batches.position)
    batches.done(batch, [group(prompt("a"), 3), lost])
    batches.done(batch, [group(prompt("a"), 5)])
    assert batches.attempts == {"a": [Attempt(3, N), Attempt(5, N)]}

    state = RunState(step=12, version=12, sampler=batches.position, attempts=batches.attempts)
    resumed = stream(0)
    resumed.restart(state, tmp_path)
    assert resumed.attempts == batches.attempts
    resumed.done(batch, [group(prompt("a"), 0)])
    assert len(state.attempts["a"]) == 2  # the saved state is not touched


def test_nothing_is_begun_for_steps_after_the_phase() -> None:
    """Steps 11 to 13, and generation may run two steps ahead."""

    batches = stream(0, "rollout.max_off_policy_steps=2", "group_size=0")
    begun = []
    for step in (11, 12, 13):
        assert batches.begin(step).step == step
        begun.append([batch.step for batch in batches._ahead])
    assert begun == [[12, 13], [13], []]
