"""The driver's side of the rollout workers: deal requests out, take finished rollouts in.

In: requests for a batch of questions. Out: batches of rollouts as they finish, from whichever worker.
All samples of a question go to one worker, where they share the prompt's cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from hpt_ray.cluster.groups import ActorGroup
from hpt_ray.errors import WaitExpired
from hpt_ray.records import Rollout
from hpt_ray.rollout.requests import GenerateRequest, Sampling


class RolloutPool:
    """Any number of rollout workers as one source of rollouts."""

    def __init__(self, workers: ActorGroup, *, timeout_s: float):
        self._workers = workers
        self._timeout_s = timeout_s

    async def generate(
        self, requests: list[GenerateRequest], sampling: Sampling
    ) -> AsyncIterator[list[Rollout]]:
        """Batches of rollouts as they finish, until every sample of every request is there.

        Raises `WaitExpired` naming the workers that still owe rollouts after the limit.
        """
        inbox: asyncio.Queue[tuple[int, list[Rollout] | BaseException | None]] = asyncio.Queue()
        shares = deal(requests, len(self._workers))
        streams = [
            asyncio.create_task(self._forward(i, share, sampling, inbox))
            for i, share in enumerate(shares)
            if share
        ]
        running = {i for i, share in enumerate(shares) if share}
        deadline = time.monotonic() + self._timeout_s
        try:
            while running:
                try:
                    worker, item = await asyncio.wait_for(inbox.get(), deadline - time.monotonic())
                except TimeoutError as error:
                    names = ", ".join(self._workers.names[i] for i in sorted(running))
                    raise WaitExpired(
                        f"{names} still owed rollouts after {self._timeout_s:.0f} s (rollout.timeout_s)"
                    ) from error
                if isinstance(item, BaseException):
                    raise RuntimeError(f"{self._workers.names[worker]} failed: {item}") from item
                if item is None:
                    running.discard(worker)
                else:
                    yield item
        finally:
            for stream in streams:
                stream.cancel()

    async def abort(self, question_ids: set[str]) -> int:
        """Stop generating for these questions; how many answers were still running."""
        counts = await self._workers.call("abort", question_ids, timeout_s=self._timeout_s)
        return sum(counts)

    async def _forward(
        self, worker: int, share: list[GenerateRequest], sampling: Sampling, inbox: asyncio.Queue[Any]
    ) -> None:
        """One worker's stream into the common inbox, with `None` at its end."""
        try:
            actor = self._workers.actors[worker]
            stream = actor.generate.options(num_returns="streaming").remote(share, sampling)
            async for reference in stream:
                await inbox.put((worker, await reference))
            await inbox.put((worker, None))
        except Exception as error:  # handed to the reader of the inbox, who raises it
            await inbox.put((worker, error))


def deal(requests: list[GenerateRequest], num_workers: int) -> list[list[GenerateRequest]]:
    """Requests to workers, longest prompts first, each to the worker with the fewest sequences so far."""
    shares: list[list[GenerateRequest]] = [[] for _ in range(num_workers)]
    loads = [0] * num_workers
    for request in sorted(requests, key=lambda r: -len(r.prompt_ids)):
        worker = min(range(num_workers), key=loads.__getitem__)
        shares[worker].append(request)
        loads[worker] += len(request.samples)
    return shares
