"""Rollouts to groups: complete ones as they are complete, certain ones at once, failures handed on."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from hpt_ray.reward.groups import GroupStream, graded_groups, in_order
from hpt_ray.types import FinishReason, Group, Outcome, Prompt, RewardResult, Rollout


class LocalVerifier:
    """Grades in this process what the service grades in its own: an answer of "1" is right, one of "?" fails."""

    async def call(self, method: str, items, *, timeout_s: float, what: str) -> list[list[RewardResult]]:
        await asyncio.sleep(0)
        outcomes = {"1": Outcome.CORRECT, "?": Outcome.ERROR}
        found = [outcomes.get(item.response, Outcome.WRONG) for item in items]
        return [[RewardResult(float(outcome is Outcome.CORRECT), outcome) for outcome in found]]


def rollout(prompt: str, sample: int, text: str) -> Rollout:
    ids, logprobs = np.array([1], np.int32), np.array([-0.1], np.float32)
    return Rollout(prompt, sample, ids, logprobs, FinishReason.STOP, 0, text)


def collect(batches, *, num_samples: int, is_certain=None) -> tuple[list[Group], list[set[str]]]:
    aborted: list[set[str]] = []

    async def stream():
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
            for _ in range(5):
                await asyncio.sleep(0)  # grading goes on meanwhile

    async def abort(ids: set[str]) -> None:
        aborted.append(ids)

    async def run() -> list[Group]:
        prompts = {name: Prompt(name, np.array([1], np.int32), name, "1", "set") for name in "ab"}
        groups = graded_groups(
            stream(),
            prompts,
            num_samples=num_samples,
            verifier=LocalVerifier(),  # type: ignore[arg-type]
            timeout_s=5,
            is_certain=is_certain,
            abort=abort,
        )
        return [group async for group in groups]

    return asyncio.run(run()), aborted


def test_groups_come_as_they_are_complete_with_every_sample_in_its_place() -> None:
    batches = [
        [rollout("a", 1, "1"), rollout("b", 1, "0")],
        [rollout("b", 0, "1")],
        [rollout("a", 0, "0")],
    ]
    groups, aborted = collect(batches, num_samples=2)
    assert [group.prompt.id for group in groups] == ["b", "a"]
    assert [[v.correct for v in group.results] for group in groups] == [[True, False], [False, True]]
    assert [[r.sample for r in group.rollouts] for group in groups] == [[0, 1], [0, 1]]
    assert aborted == []


def test_a_certain_prompt_leaves_at_once_and_its_late_rollouts_are_ignored() -> None:
    batches = [
        [rollout("a", 2, "0"), rollout("a", 0, "0")],
        [rollout("a", 1, "1"), rollout("b", 0, "1"), rollout("b", 1, "1"), rollout("b", 2, "0")],
    ]
    groups, aborted = collect(
        batches, num_samples=3, is_certain=lambda prompt, solved, graded: graded - solved >= 2
    )
    assert aborted == [{"a"}]
    first, second = groups
    assert first.prompt.id == "a"
    assert [r.finish for r in first.rollouts] == [FinishReason.STOP, FinishReason.ABORT, FinishReason.STOP]
    assert len(first.rollouts[1].token_ids) == 0
    assert first.num_correct == 0
    assert second.num_correct == 2


def test_a_prompt_with_a_failed_reward_is_not_certain_before_its_end() -> None:
    batches = [
        [rollout("a", 0, "?"), rollout("a", 1, "0")],
        [rollout("a", 2, "1"), rollout("b", 0, "0"), rollout("b", 1, "0")],
    ]
    groups, aborted = collect(batches, num_samples=3, is_certain=lambda prompt, solved, graded: graded >= 2)
    assert aborted == [{"b"}]
    assert [group.prompt.id for group in groups] == ["a", "b"]
    assert groups[0].num_correct == 1


def run_hooked(
    first: list[list[Rollout]], arriving: asyncio.Queue[list[Rollout] | None], **hooks
) -> list[Group]:
    """The groups of a and b, two rollouts each, where hooks put what comes after `first` into `arriving`."""

    async def stream():
        while (batch := await arriving.get()) is not None:
            yield batch

    async def run() -> list[Group]:
        prompts = {name: Prompt(name, np.array([1], np.int32), name, "1", "set") for name in "ab"}
        for batch in first:
            arriving.put_nowait(batch)
        groups = graded_groups(
            stream(),
            prompts,
            num_samples=2,
            verifier=LocalVerifier(),  # type: ignore[arg-type]
            timeout_s=5,
            **hooks,
        )
        return [group async for group in groups]

    return asyncio.run(run())


def test_a_group_that_is_drawn_again_goes_out_once_with_all_its_rollouts() -> None:
    """Twice more of a, as many as are asked for, whose last ones alone are not superseded; b is done at once."""
    arriving: asyncio.Queue[list[Rollout] | None] = asyncio.Queue()
    sizes: list[tuple[str, int]] = []

    def again(key: str, group: Group) -> int:
        first = len(group.rollouts)
        sizes.append((key, first))
        if key == "b" or first == 4:
            arriving.put_nowait(None if len(sizes) == 4 else [])
            return 0
        arriving.put_nowait([rollout(key, first, "1")])
        return 1

    first = [
        [rollout("a", 1, "0"), rollout("b", 0, "0")],
        [rollout("b", 1, "0"), rollout("a", 0, "0")],
    ]
    groups = {group.prompt.id: group for group in run_hooked(first, arriving, again=again)}
    assert sorted(sizes) == [("a", 2), ("a", 3), ("a", 4), ("b", 2)]
    assert [r.sample for r in groups["a"].rollouts] == [0, 1, 2, 3]
    assert [r.superseded for r in groups["a"].rollouts] == [True, True, True, False]
    assert [r.correct for r in groups["a"].results] == [False, False, True, True]
    assert not any(r.superseded for r in groups["b"].rollouts)


def test_another_prompt_comes_in_the_place_of_a_group() -> None:
    """Of a the rewards are equal, so c comes instead, and d instead of that; b goes out as it is."""
    arriving: asyncio.Queue[list[Rollout] | None] = asyncio.Queue()
    others = iter("cd")

    def instead(key: str, group: Group) -> tuple[str, Prompt] | None:
        if key in "bd":
            arriving.put_nowait(None if key == "d" else [])
            return None
        other = next(others)
        arriving.put_nowait(
            [rollout(f"{other}#2", 0, "0"), rollout(f"{other}#2", 1, "1" if other == "d" else "0")]
        )
        return f"{other}#2", Prompt(other, np.array([1], np.int32), other, "1", "set")

    first = [[rollout("a", 0, "1"), rollout("a", 1, "1"), rollout("b", 0, "0")], [rollout("b", 1, "1")]]
    found = run_hooked(first, arriving, instead=lambda key, group: instead(key[0], group))
    groups = {group.prompt.id: group for group in found}
    assert {name: group.replaced for name, group in groups.items()} == {
        "a": True,
        "b": False,
        "c": True,
        "d": False,
    }
    assert [result.correct for result in groups["d"].results] == [False, True]


def test_a_failing_stream_is_handed_on() -> None:
    with pytest.raises(RuntimeError, match="engine broke"):
        collect([[rollout("a", 0, "1")], RuntimeError("engine broke")], num_samples=1)


@pytest.mark.parametrize("failed", ["0", "?"])
def test_a_right_answer_and_a_failed_reward_ask_for_what_was_held(failed: str) -> None:
    released: list[set[str]] = []

    async def stream():
        yield [rollout("a", 0, failed), rollout("b", 0, "1")]
        for _ in range(5):
            await asyncio.sleep(0)
        assert released == [{"b"} | ({"a"} if failed == "?" else set())]
        yield [rollout("a", 1, "0"), rollout("b", 1, "0")]

    async def run() -> list[Group]:
        prompts = {name: Prompt(name, np.array([1], np.int32), name, "1", "set") for name in "ab"}
        groups = graded_groups(
            stream(),
            prompts,
            num_samples=2,
            verifier=LocalVerifier(),  # type: ignore[arg-type]
            timeout_s=5,
            release=lambda ids: released.append(ids) if ids else None,
        )
        return [group async for group in groups]

    assert len(asyncio.run(run())) == 2


def lost(prompt: str, sample: int) -> Rollout:
    nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return Rollout(prompt, sample, *nothing, FinishReason.LOST, -1, "")


def test_a_lost_rollout_is_not_graded_and_stands_in_its_group() -> None:
    batches = [[rollout("a", 0, "1"), lost("a", 1), rollout("b", 0, "1"), rollout("b", 1, "1")]]
    groups, _ = collect(batches, num_samples=2)
    (group,) = (group for group in groups if group.prompt.id == "a")
    assert [r.finish for r in group.rollouts] == [FinishReason.STOP, FinishReason.LOST]
    assert group.num_correct == 1
    assert "lost" in (group.results[1].detail or "")


# -- streams ---------------------------------------------------------------------------------------


def group_of(name: str) -> Group:
    prompt = Prompt(name, np.array([1], np.int32), name, "1", "set")
    return Group(prompt, [rollout(name, 0, "1")], [RewardResult(1.0, Outcome.CORRECT)])


async def slowly(names: str, error: Exception | None = None):
    for name in names:
        await asyncio.sleep(0)
        yield group_of(name)
    if error is not None:
        raise error


def test_a_stream_works_before_it_is_read_and_can_be_read_twice() -> None:
    async def run() -> tuple[list[str], list[str]]:
        stream = GroupStream(source=slowly("abc"))
        everything = [group.prompt.id for group in await stream.all()]
        return everything, [group.prompt.id async for group in stream]

    assert asyncio.run(run()) == (["a", "b", "c"], ["a", "b", "c"])


def test_a_stream_gives_what_came_before_it_failed_and_then_raises() -> None:
    seen = []

    async def run() -> None:
        async for group in GroupStream(source=slowly("ab", ValueError("broken"))):
            seen.append(group.prompt.id)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())
    assert seen == ["a", "b"]


def test_a_closed_stream_stops_its_source() -> None:
    stopped = []

    async def endless():
        try:
            while True:
                await asyncio.sleep(0)
                yield group_of("a")
        finally:
            stopped.append(True)

    async def run() -> None:
        stream = GroupStream(source=endless())
        await asyncio.sleep(0.01)
        await stream.close()

    asyncio.run(run())
    assert stopped == [True]


def test_groups_in_order_wait_for_those_before_them() -> None:
    async def run() -> list[str]:
        return [group.prompt.id async for group in in_order(slowly("cab"), ["a", "b", "c"])]

    assert asyncio.run(run()) == ["a", "b", "c"]
