"""Rollouts to groups: grade them as they come, give out each prompt when its last result is in.

In: batches of rollouts, as the router gives them. Out: complete `Group`s, each with the results of its rollouts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.service import GradeItem
from hpt_ray.types import FinishReason, Group, Outcome, Prompt, RewardResult, Rollout, has_reward

IsCertain = Callable[[Prompt, int, int], bool]  # prompt, how many of its rollouts are correct, and graded
MAX_GRADE_CALLS = 8  # at the same time; what comes in meanwhile goes together
NOT_GRADED = RewardResult(0.0, Outcome.NO_ANSWER, detail="aborted: the decision was certain without it")
LOST = RewardResult(0.0, Outcome.NO_ANSWER, detail="lost: the workers it was given to failed")


@dataclass
class _Gathering:
    """A prompt on its way to being a group: what is graded so far, by sample."""

    prompt: Prompt
    num_samples: int
    graded: dict[int, tuple[Rollout, RewardResult]] = field(default_factory=dict)
    num_superseded: int = 0  # of the samples, the first ones

    @property
    def num_correct(self) -> int:
        return sum(result.correct for _, result in self.graded.values())

    def is_settled(self, is_certain: IsCertain) -> bool:
        """Whether the decision is certain before all samples are there; without every reward it never is."""
        return all(has_reward(*pair) for pair in self.graded.values()) and is_certain(
            self.prompt, self.num_correct, len(self.graded)
        )

    def go_on(self, num_more: int) -> None:
        """So many further samples will come, and take the place of those that are there."""
        self.num_superseded = self.num_samples
        self.num_samples += num_more

    def group(self) -> Group:
        """The samples in their order; those that were not waited for as aborted ones."""
        missing = (
            (Rollout.missing(self.prompt.id, i, FinishReason.ABORT), NOT_GRADED)
            for i in range(self.num_samples)
        )
        pairs = [self.graded.get(i, pair) for i, pair in enumerate(missing)]
        rollouts = [rollout for rollout, _ in pairs]
        before = self.num_superseded
        rollouts[:before] = [replace(rollout, superseded=True) for rollout in rollouts[:before]]
        return Group(self.prompt, rollouts, [result for _, result in pairs])


class GroupStream:
    """Groups of one batch of prompts, as they are complete. Work starts at once, read or not.

    Reading raises what went wrong while the groups were made. `close` it where it is not read to its end.
    """

    def __init__(self, groups: Sequence[Group] = (), source: AsyncIterator[Group] | None = None):
        self._groups = list(groups)
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._task = None if source is None else asyncio.create_task(self._fill(source))

    async def _fill(self, source: AsyncIterator[Group]) -> None:
        try:
            async for group in source:
                self._groups.append(group)
                self._news.set()
        except Exception as error:
            self._error = error
        finally:
            self._news.set()

    async def __aiter__(self) -> AsyncIterator[Group]:
        taken = 0
        while True:
            while taken < len(self._groups):
                taken += 1
                yield self._groups[taken - 1]
            if self._error is not None:
                raise self._error
            if self._task is None or self._task.done():
                return
            self._news.clear()
            await self._news.wait()

    async def all(self) -> list[Group]:
        """Every group of the batch, once the last is complete; reading still gives them all."""
        return [group async for group in self]

    async def close(self) -> None:
        """Stop making groups; what is being generated for them is aborted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def in_order(groups: AsyncIterator[Group], ids: Sequence[str]) -> AsyncIterator[Group]:
    """The groups in the order of `ids` (of their requests), each as soon as those before it are there."""
    early: dict[str, Group] = {}
    following = iter(ids)
    awaited = next(following, None)
    async for group in groups:
        early[group.rollouts[0].prompt_id] = group
        while awaited in early:
            yield early.pop(awaited)
            awaited = next(following, None)


async def graded_groups(
    rollouts: AsyncIterable[list[Rollout]],
    prompts: Mapping[str, Prompt],
    *,
    num_samples: int,
    verifier: ActorGroup,
    timeout_s: float,
    is_certain: IsCertain | None = None,
    abort: Callable[[set[str]], Awaitable[None]] | None = None,
    release: Callable[[set[str]], None] | None = None,
    again: Callable[[str, Group], int] | None = None,
    instead: Callable[[str, Group], tuple[str, Prompt] | None] | None = None,
) -> AsyncIterator[Group]:
    """Groups in the order in which they are complete; grading goes on while others are generated.

    `prompts` by the id their rollouts carry. Where `is_certain(prompt, correct, graded)` says that the gate's decision
    cannot change any more, the prompt's remaining rollouts are aborted and the group is given out at once; they stand
    in it as ABORT, without tokens. Of a prompt with a correct rollout, or with one that has no reward, all are needed:
    `release` asks for those that were held. `again(key, group)` may ask for further rollouts of a complete group and
    says how many. `instead(key, group)` may ask for rollouts of another prompt and says which, under which id: the
    group is then `replaced`. Raises what the stream raises, and `WaitExpired` where the verifier does not answer.
    """
    ready: asyncio.Queue[Group | BaseException | None] = asyncio.Queue()
    prompts = dict(prompts)  # more may come
    gathering = {key: _Gathering(prompt, num_samples) for key, prompt in prompts.items()}
    waiting: list[Rollout] = []  # for one of the calls to the verifier to come back
    calls = asyncio.Semaphore(MAX_GRADE_CALLS)

    async def grade(batch: list[Rollout]) -> None:
        results = await _results(batch, prompts, verifier, timeout_s)
        pairs = list(zip(batch, results, strict=True))
        if release:
            release({one.prompt_id for one, result in pairs if result.correct or not has_reward(one, result)})
        settled = set()
        for rollout, result in pairs:
            key = rollout.prompt_id
            if (entry := gathering.get(key)) is None:
                continue  # it finished while its prompt was being settled
            entry.graded[rollout.sample] = rollout, result
            if len(entry.graded) == entry.num_samples:
                if again and (num_more := again(key, entry.group())):
                    entry.go_on(num_more)
                    continue
                group = gathering.pop(key).group()
                if instead and (other := instead(key, group)):
                    group, (name, prompt) = replace(group, replaced=True), other
                    prompts[name], gathering[name] = prompt, _Gathering(prompt, num_samples)
                await ready.put(group)
            elif is_certain and entry.is_settled(is_certain):
                settled.add(key)
        for key in settled & gathering.keys():
            await ready.put(gathering.pop(key).group())
        if settled and abort:
            await abort(settled)

    async def grade_waiting() -> None:
        async with calls:
            batch, waiting[:] = waiting[:], []
            await grade(batch)

    async def read() -> None:
        try:
            async with asyncio.TaskGroup() as grading:
                async for batch in rollouts:
                    waiting.extend(batch)
                    grading.create_task(grade_waiting())
            await ready.put(None)
        except BaseExceptionGroup as group:
            await ready.put(group.exceptions[0])

    reader = asyncio.create_task(read())
    try:
        while (item := await ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
        assert not gathering, f"{len(gathering)} prompts never became groups"
    finally:
        reader.cancel()
        await asyncio.wait([reader])


async def _results(
    batch: Sequence[Rollout],
    prompts: Mapping[str, Prompt],
    verifier: ActorGroup,
    timeout_s: float,
) -> list[RewardResult]:
    """One for each rollout, from one call to the verifier; what was lost is not sent."""
    rows = {key: Row.of(prompts[key]) for key in {rollout.prompt_id for rollout in batch}}
    items = [
        _item(rollout, prompts[rollout.prompt_id].ground_truth, rows[rollout.prompt_id])
        for rollout in batch
        if rollout.finish is not FinishReason.LOST
    ]
    graded: list[RewardResult] = []
    if items:
        (graded,) = await verifier.call("grade", items, timeout_s=timeout_s, what="grade responses")
    of_items = iter(graded)
    return [LOST if rollout.finish is FinishReason.LOST else next(of_items) for rollout in batch]


def _item(rollout: Rollout, ground_truth: Any, row: Row) -> GradeItem:
    return GradeItem(
        response=rollout.text,
        ground_truth=ground_truth,
        row=row,
        finished=rollout.finish is FinishReason.STOP,
        num_tokens=len(rollout.token_ids),
    )
