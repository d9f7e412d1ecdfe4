"""Rollouts to groups: grade them as they come, give out each question when its last verdict is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpt_ray.cluster.groups import ActorGroup
from hpt_ray.records import FinishReason, Group, Question, Rollout, Verdict
from hpt_ray.reward.service import GradeItem


@dataclass
class _Gathering:
    """A question on its way to being a group."""

    question: Question
    rollouts: dict[int, Rollout] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)


async def graded_groups(
    rollouts: AsyncIterator[list[Rollout]],
    questions: Mapping[str, Question],
    *,
    num_samples: int,
    verifier: ActorGroup,
    timeout_s: float,
) -> AsyncIterator[Group]:
    """Groups in the order in which they are complete; grading goes on while others are generated.

    `questions` by the id their rollouts carry. Raises whatever the stream of rollouts raises, and
    `WaitExpired` where the verifier service does not answer.
    """
    ready: asyncio.Queue[Group | BaseException | None] = asyncio.Queue()
    gathering = {key: _Gathering(question) for key, question in questions.items()}

    async def grade(batch: list[Rollout]) -> None:
        items = [_item(rollout, gathering[rollout.question_id].question) for rollout in batch]
        (verdicts,) = await verifier.call("grade", items, timeout_s=timeout_s, what="grade answers")
        for rollout, verdict in zip(batch, verdicts, strict=True):
            entry = gathering[rollout.question_id]
            entry.rollouts[rollout.sample] = rollout
            entry.verdicts[rollout.sample] = verdict
            if len(entry.verdicts) == num_samples:
                await ready.put(_group(gathering.pop(rollout.question_id)))

    async def read() -> None:
        try:
            async with asyncio.TaskGroup() as grading:
                async for batch in rollouts:
                    grading.create_task(grade(batch))
            await ready.put(None)
        except BaseExceptionGroup as group:
            await ready.put(group.exceptions[0])

    reader = asyncio.create_task(read())
    try:
        while (item := await ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
        assert not gathering, f"{len(gathering)} questions never became groups"
    finally:
        reader.cancel()


def _item(rollout: Rollout, question: Question) -> GradeItem:
    return GradeItem(
        response=rollout.text,
        ground_truth=question.ground_truth,
        data_source=question.data_source,
        finished=rollout.finish is FinishReason.STOP,
        num_tokens=len(rollout.token_ids),
    )


def _group(entry: _Gathering) -> Group:
    order: list[Any] = sorted(entry.rollouts)
    return Group(entry.question, [entry.rollouts[i] for i in order], [entry.verdicts[i] for i in order])
