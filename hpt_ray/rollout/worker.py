"""The rollout worker: a Ray actor around one vLLM engine.

One thread owns the engine. Commands (add, abort, weight update) go through a queue and run between
two engine steps. Finished answers leave through an asyncio queue per call of `generate`, in batches
of whatever has finished since the last one.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from hpt_ray.cluster.process import prepare_process
from hpt_ray.records import Rollout
from hpt_ray.rollout.engine import EngineSpec, Finished, VllmEngine, environment
from hpt_ray.rollout.requests import GenerateRequest, Sampling


@dataclass
class _Call:
    """One running call of `generate`: where its answers go and how many are still to come."""

    loop: asyncio.AbstractEventLoop
    inbox: asyncio.Queue
    remaining: int

    def deliver(self, item: list[Finished] | BaseException) -> None:
        self.loop.call_soon_threadsafe(self.inbox.put_nowait, item)


class RolloutWorker:
    """Serves rollouts of the weights it last committed."""

    def __init__(self, spec: EngineSpec, log_file: str | None):
        prepare_process(
            threads=spec.rollout.num_cpus, log_file=log_file, environment=environment(spec.rollout)
        )
        self._spec = spec
        self._commands: queue.SimpleQueue[tuple[Callable[[VllmEngine], Any], Future]] = queue.SimpleQueue()
        self._calls: dict[str, _Call] = {}  # question id -> the call that asked for it
        self._busy_s = 0.0
        self._started: Future = Future()
        self._tokenizer: Any = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    # -- the engine's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            engine = VllmEngine(self._spec)
            self._started.set_result(None)
        except BaseException as error:
            self._started.set_exception(error)
            return
        try:
            while True:
                self._run_commands(engine)
                if engine.busy:
                    begin = time.perf_counter()
                    self._deliver(engine.step())
                    self._busy_s += time.perf_counter() - begin
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        """The engine is broken: all who wait, and all who still come, hear why."""
        for call in {id(call): call for call in self._calls.values()}.values():
            call.deliver(error)
        while True:
            _, done = self._commands.get()
            done.set_exception(error)

    def _run_commands(self, engine: VllmEngine) -> None:
        """Run queued commands; wait for one where there is nothing to decode."""
        while True:
            try:
                command, done = self._commands.get(block=not engine.busy)
            except queue.Empty:
                return
            try:
                done.set_result(command(engine))
            except BaseException as error:
                done.set_exception(error)

    def _deliver(self, finished: list[Finished]) -> None:
        batches: dict[int, tuple[_Call, list[Finished]]] = {}
        for answer in finished:
            call = self._calls[answer.question_id]
            batches.setdefault(id(call), (call, []))[1].append(answer)
        for call, batch in batches.values():
            call.deliver(batch)

    async def _do(self, command: Callable[[VllmEngine], Any]) -> Any:
        done: Future = Future()
        self._commands.put((command, done))
        return await asyncio.wrap_future(done)

    # -- what the driver calls ---------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when the engine is up; raises what kept it from coming up."""
        from hpt_ray.data.tokenizer import load_tokenizer

        await asyncio.wrap_future(self._started)
        self._tokenizer = load_tokenizer(
            self._spec.model_path, trust_remote_code=self._spec.model.trust_remote_code
        )

    async def generate(
        self, requests: list[GenerateRequest], sampling: Sampling
    ) -> AsyncIterator[list[Rollout]]:
        """Batches of finished rollouts, as they finish, until all of `requests` are answered.

        When the caller goes away, what is still running for it is aborted.
        """
        call = _Call(asyncio.get_running_loop(), asyncio.Queue(), sum(len(r.samples) for r in requests))
        for request in requests:
            self._calls[request.question_id] = call

        def add_all(engine: VllmEngine) -> None:
            for request in requests:
                engine.add(request, sampling)

        try:
            await self._do(add_all)
            while call.remaining:
                batch = await self._next_batch(call)
                call.remaining -= len(batch)
                if batch:
                    yield [self._rollout(answer) for answer in batch]
        finally:
            ids = {request.question_id for request in requests}
            if call.remaining:
                self._commands.put((lambda engine: engine.abort(ids), Future()))
            for question_id in ids:
                self._calls.pop(question_id, None)

    @staticmethod
    async def _next_batch(call: _Call) -> list[Finished]:
        batch: list[Finished] = []
        item = await call.inbox.get()
        while True:
            if isinstance(item, BaseException):
                raise item
            batch += item
            if call.inbox.empty():
                return batch
            item = call.inbox.get_nowait()

    def _rollout(self, answer: Finished) -> Rollout:
        return Rollout(
            question_id=answer.question_id,
            sample=answer.sample,
            token_ids=answer.token_ids,
            logps=answer.logps,
            finish=answer.finish,
            weight_version=answer.weight_version,
            text=self._tokenizer.decode(answer.token_ids, skip_special_tokens=True),
        )

    async def abort(self, question_ids: set[str]) -> int:
        """Stop generating for these questions; their streams end without the missing answers."""
        stopped = await self._do(lambda engine: engine.abort(question_ids))
        for question_id in stopped:
            call = self._calls.get(question_id)
            if call is not None:
                call.remaining -= 1
                call.deliver([])
        return len(stopped)

    async def connect(self, init_info: dict) -> None:
        await self._do(lambda engine: engine.connect(init_info))

    async def begin_update(self, check_each_name: bool) -> None:
        await self._do(lambda engine: engine.begin_update(check_each_name=check_each_name))

    async def receive(self, update_info: dict) -> None:
        await self._do(lambda engine: engine.receive(update_info))

    async def commit_update(self, version: int) -> list[str]:
        return await self._do(lambda engine: engine.commit_update(version))

    async def busy_seconds(self) -> float:
        """Seconds the engine has spent decoding since it started."""
        return self._busy_s
