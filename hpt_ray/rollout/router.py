"""The engine group as one source of rollouts: deal requests out, take finished rollouts in.

In: requests for batches of prompts, several batches at a time. Out: each batch's rollouts as they finish, from
whichever worker. All samples of a prompt go to one worker, where they share the prompt's cache. A worker is
given a little more than it decodes at the same time, so that it is never short of work and what is left can
still go to whoever is free. What a worker that fails was asked for goes to the front of the queue.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from hpt_ray.errors import WaitExpired
from hpt_ray.rollout.engine_group import ANSWER_LIMIT_S, EngineGroup, Worker
from hpt_ray.rollout.requests import GenerateRequest, Sampling
from hpt_ray.types import FinishReason, Rollout

MAX_TRIES = 3  # of one prompt that was with a worker each time it failed; then its rollouts are lost
WINDOW = 1.5  # sequences with a worker, over those it decodes at the same time


@dataclass(eq=False)
class _Job:
    """Samples of a prompt on their way, and for whom."""

    key: str  # unique among all that is under way
    request: GenerateRequest
    draw: Draw
    missing: set[int] = field(init=False)
    tries: int = 0

    def __post_init__(self) -> None:
        self.missing = set(self.request.samples)

    @property
    def load(self) -> float:
        """Tokens that are likely still to come."""
        return len(self.missing) * self.request.expected_tokens

    def remaining(self) -> GenerateRequest:
        """The request for what is missing, under the job's key."""
        request = self.request
        left = [
            (s, seed) for s, seed in zip(request.samples, request.seeds, strict=True) if s in self.missing
        ]
        samples, seeds = zip(*left, strict=True)
        return replace(request, prompt_id=self.key, samples=samples, seeds=seeds)

    def deliver(self, rollouts: list[Rollout]) -> None:
        self.missing.difference_update(rollout.sample for rollout in rollouts)
        self.draw.num_missing -= len(rollouts)
        self.draw.inbox.put_nowait(rollouts)


class Draw:
    """The rollouts of one batch of prompts, as they finish: read it as an async iterator, to its end.

    With `goes_on` its end comes once `settle` was called for every prompt; until then `again` and `another` may ask
    for more. A rollout whose workers failed again and again comes as LOST, without tokens. Reading raises
    `WaitExpired` where no worker came up with any rollout within the limit, and `NoWorkerLeft`.
    """

    def __init__(
        self, router: Router, requests: list[GenerateRequest], sampling: Sampling, goes_on: bool = False
    ):
        self._router, self.sampling = router, sampling
        self.inbox: asyncio.Queue[list[Rollout]] = asyncio.Queue()
        self.num_missing = sum(len(request.samples) for request in requests)
        self.jobs: dict[str, list[_Job]] = {}  # by prompt
        self._held: dict[str, GenerateRequest] = {}
        self._open = {request.prompt_id for request in requests} if goes_on else set()
        self._again: dict[str, GenerateRequest] = {}
        for request in requests:
            first = len(request.samples) - request.num_held
            self.jobs.setdefault(request.prompt_id, []).append(router.job(self, request.part(0, first)))
            if request.num_held:
                self._held[request.prompt_id] = request.part(first, len(request.samples))

    async def __aiter__(self) -> AsyncIterator[list[Rollout]]:
        router = self._router
        router.wait_in_line([job for jobs in self.jobs.values() for job in jobs])
        try:
            while self.num_missing or self._open or not self.inbox.empty():
                batch = await router.next_batch(self)
                if batch:
                    yield batch
        finally:
            await self.abort({prompt for prompt, jobs in self.jobs.items() if any(j.missing for j in jobs)})

    def release(self, prompt_ids: set[str]) -> None:
        """Draw what was held of these prompts, before all that waits."""
        released = [(name, self._held.pop(name)) for name in sorted(prompt_ids & self._held.keys())]
        jobs = [self._router.job(self, request) for _, request in released]
        for (name, _), job in zip(released, jobs, strict=True):
            self.jobs[name].append(job)
        self._router.wait_in_line(jobs, first=True)

    def again(self, request: GenerateRequest) -> None:
        """Draw further samples of a prompt, before all that waits."""
        self._again[request.prompt_id] = request
        self._draw_again()

    def another(self, request: GenerateRequest) -> None:
        """Draw the samples of one more prompt, before all that waits."""
        self._open.add(request.prompt_id)
        self.jobs[request.prompt_id] = []
        self.again(request)

    def settle(self, prompt_id: str) -> None:
        """Nothing further will be asked for this prompt."""
        self._open.discard(prompt_id)
        self._draw_again()
        self.inbox.put_nowait([])  # whoever waits looks again

    def _draw_again(self) -> None:
        """At once; or all together, in one order, when nothing else of this draw is under way."""
        if self._router.in_advance and len(self._again) < len(self._open):
            return
        requests = [self._again.pop(name) for name in sorted(self._again)]
        jobs = [self._router.job(self, request) for request in requests]
        for job in jobs:
            self.jobs[job.request.prompt_id].append(job)
            self.num_missing += len(job.missing)
        self._router.wait_in_line(jobs, first=True)

    async def abort(self, prompt_ids: set[str]) -> None:
        """Stop drawing for these prompts."""
        self._open -= prompt_ids
        for request in (self._held.pop(name) for name in prompt_ids & self._held.keys()):
            self.num_missing -= len(request.samples)
        jobs = [job for name in prompt_ids for job in self.jobs[name] if job.missing]
        for job in jobs:
            self.num_missing -= len(job.missing)
            job.missing.clear()
        self.inbox.put_nowait([])  # whoever waits looks again
        await self._router.forget(jobs)


class Router:
    """Any number of rollout workers as one source of rollouts.

    With `in_advance` a batch is dealt out whole when it comes, so that which sequences are decoded together
    does not depend on timing.
    """

    def __init__(
        self, engines: EngineGroup, *, max_num_seqs: int, timeout_s: float, in_advance: bool = False
    ):
        self._engines, self._timeout_s, self.in_advance = engines, timeout_s, in_advance
        self._window = float("inf") if in_advance else WINDOW * max_num_seqs
        self._waiting: deque[_Job] = deque()
        self._running: dict[Worker, dict[str, _Job]] = {}
        self._keys = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_rollout_s = time.monotonic()
        self.faults: Counter[str] = Counter()  # rollouts, by what happened to them, since the run began
        self.aborted_tokens = 0  # sampled for rollouts that were then aborted
        engines.on_up, engines.on_down = self._up, self._down
        for worker in engines.serving:
            self._up(worker)

    def generate(self, requests: list[GenerateRequest], sampling: Sampling, *, goes_on: bool = False) -> Draw:
        """Begin to draw when the first rollout is asked for; every sample of every request, but for what
        is held and not released.
        """
        return Draw(self, requests, sampling, goes_on)

    # -- what a draw asks for ----------------------------------------------------------------------

    def job(self, draw: Draw, request: GenerateRequest) -> _Job:
        return _Job(f"{next(self._keys)}", request, draw)

    def wait_in_line(self, jobs: list[_Job], *, first: bool = False) -> None:
        if not any(self._running.values()):
            self._last_rollout_s = time.monotonic()
        if first:
            self._waiting.extendleft(reversed(jobs))
        else:
            self._waiting.extend(jobs)
        self._deal()

    async def next_batch(self, draw: Draw) -> list[Rollout]:
        """The next rollouts, or nothing after a while, so that the caller looks around."""
        self._engines.check_hope()
        try:
            return await asyncio.wait_for(draw.inbox.get(), min(self._timeout_s, ANSWER_LIMIT_S))
        except TimeoutError:
            if time.monotonic() - self._last_rollout_s < self._timeout_s:
                return []
        owed = {job.key for jobs in draw.jobs.values() for job in jobs if job.missing}
        names = [worker.name for worker, running in self._running.items() if owed & running.keys()]
        raise WaitExpired(
            f"no rollout came for {self._timeout_s:.0f} s (rollout.timeout_s); waited for "
            f"{', '.join(names) or 'a worker that serves'}"
        )

    async def forget(self, jobs: list[_Job]) -> None:
        """Stop what workers do for these jobs."""
        forgotten = {job.key for job in jobs}
        if not forgotten:
            return
        self._waiting = deque(job for job in self._waiting if job.key not in forgotten)
        stopping = []
        for worker, running in list(self._running.items()):
            keys = forgotten & running.keys()
            for key in keys:
                del running[key]
            if keys:
                stopping.append(self._stop(worker, keys))
        self._deal()
        await asyncio.gather(*stopping)

    async def _stop(self, worker: Worker, keys: set[str]) -> None:
        actor = worker.actor
        try:
            num_tokens = await worker.call("abort", keys, timeout_s=self._timeout_s)
        except Exception as error:
            self._engines.failed(worker, actor, error)
        else:
            self.aborted_tokens += num_tokens

    # -- dealing -----------------------------------------------------------------------------------

    def _deal(self) -> None:
        """Give waiting prompts to the workers with the fewest tokens to come, as far as there is room."""
        shares: defaultdict[tuple[Worker, Sampling], list[_Job]] = defaultdict(list)
        serving = {worker: jobs.values() for worker, jobs in self._running.items() if worker.health.serves}
        loads = {worker: sum(job.load for job in jobs) for worker, jobs in serving.items()}
        rooms = {w: self._window - sum(len(job.missing) for job in jobs) for w, jobs in serving.items()}
        while self._waiting:
            free = [worker for worker in loads if rooms[worker] > 0]
            if not free:
                break
            worker = min(free, key=loads.__getitem__)
            job = self._waiting.popleft()
            loads[worker] += job.load
            rooms[worker] -= len(job.missing)
            self._running[worker][job.key] = job
            shares[worker, job.draw.sampling].append(job)
        for (worker, sampling), jobs in shares.items():
            self._spawn(self._submit(worker, sampling, jobs))

    async def _submit(self, worker: Worker, sampling: Sampling, jobs: list[_Job]) -> None:
        actor = worker.actor
        requests = [job.remaining() for job in jobs if job.missing]
        try:
            await worker.call("submit", requests, sampling, timeout_s=self._timeout_s)
        except Exception as error:
            self._engines.failed(worker, actor, error)

    # -- what workers say --------------------------------------------------------------------------

    def _up(self, worker: Worker) -> None:
        if worker not in self._running:  # else it serves again and its rollouts are being read
            self._running[worker] = {}
            self._spawn(self._read(worker))
        self._deal()

    def _down(self, worker: Worker) -> None:
        """What a worker that failed was asked for is asked again, before all else."""
        for job in reversed(self._running.pop(worker, {}).values()):
            job.tries += 1
            if job.tries < MAX_TRIES:
                self._waiting.appendleft(job)
                self.faults["rollouts_requeued"] += len(job.missing)
            else:
                self.faults["rollouts_lost"] += len(job.missing)
                name = job.request.prompt_id
                job.deliver([Rollout.missing(name, i, FinishReason.LOST) for i in sorted(job.missing)])
        self._deal()

    async def _read(self, worker: Worker) -> None:
        """A worker's rollouts to those who asked, for as long as it lives."""
        actor = worker.actor
        try:
            async for reference in actor.rollouts.options(num_returns="streaming").remote():
                self._take(worker, await reference)
        except Exception as error:
            self._engines.failed(worker, actor, error)

    def _take(self, worker: Worker, rollouts: list[Rollout]) -> None:
        running = self._running.get(worker, {})
        batches: defaultdict[_Job, list[Rollout]] = defaultdict(list)
        for rollout in rollouts:
            job = running.get(rollout.prompt_id)
            if job is not None and rollout.sample in job.missing:  # else aborted as it finished
                batches[job].append(replace(rollout, prompt_id=job.request.prompt_id))
        self._last_rollout_s = time.monotonic()
        self._engines.delivered(worker)
        for job, batch in batches.items():
            job.deliver(batch)
            if not job.missing:
                del running[job.key]
        if self._waiting:
            self._deal()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def longest_first(requests: list[GenerateRequest]) -> list[GenerateRequest]:
    """The order in which work is dealt out: what takes longest first, so that the end is short."""
    return sorted(requests, key=lambda r: (-r.expected_tokens, -len(r.prompt_ids)))
