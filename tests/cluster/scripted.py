"""A rollout worker whose responses, deaths and hangs are written in the prompts: for tests of engine group and router.

Real Ray actors in processes of their own, without an engine. The first prompt token says what happens to a
request: RESPOND, after as many milliseconds as the second token says; DIE; HANG.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from hpt_ray.observe.trace import SpanRecord
from hpt_ray.rollout.requests import GenerateRequest, Sampling
from hpt_ray.rollout.worker import Progress
from hpt_ray.types import FinishReason, Rollout

RESPOND, DIE, HANG = range(3)


class ScriptedWorker:
    """As `RolloutWorker`. With `breaks_at_start` naming a file that exists, it does not come up."""

    def __init__(self, index: int, breaks_at_start: str = ""):
        self._index, self._breaks_at_start = index, breaks_at_start
        self._rollouts: asyncio.Queue[Rollout] = asyncio.Queue()
        self._running: set[str] = set()
        self._most = 0
        self._hangs = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        if self._breaks_at_start and Path(self._breaks_at_start).exists():
            raise RuntimeError("out of memory")

    async def submit(self, requests: list[GenerateRequest], sampling: Sampling) -> None:
        for request in requests:
            for sample, seed in zip(request.samples, request.seeds, strict=True):
                self._running.add(f"{request.prompt_id}/{sample}")
                task = asyncio.create_task(self._answer(request, sample, seed))
                self._tasks.add(task)
        self._most = max(self._most, len(self._running))

    async def _answer(self, request: GenerateRequest, sample: int, seed: int) -> None:
        what, milliseconds = request.prompt_ids[:2]
        await asyncio.sleep(milliseconds / 1000)
        if what == DIE:
            os._exit(1)
        if what == HANG:
            self._hangs = True
        if self._hangs or f"{request.prompt_id}/{sample}" not in self._running:
            return
        self._running.remove(f"{request.prompt_id}/{sample}")
        ids, logprobs = np.array([seed % 1000], np.int32), np.array([-1.0], np.float32)
        text = f"{self._index}"
        self._rollouts.put_nowait(
            Rollout(request.prompt_id, sample, ids, logprobs, FinishReason.STOP, 0, text)
        )

    async def rollouts(self) -> AsyncIterator[list[Rollout]]:
        while True:
            yield [await self._rollouts.get()]

    async def abort(self, prompt_ids: set[str]) -> int:
        self._running = {key for key in self._running if key.rpartition("/")[0] not in prompt_ids}
        return 7

    async def progress(self) -> Progress:
        return Progress(0, bool(self._running), 1.0)

    async def spans(self) -> list[SpanRecord]:
        return []

    async def most(self) -> int:
        """The largest number of sequences it ever had."""
        return self._most
