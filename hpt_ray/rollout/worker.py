"""The rollout worker: a Ray actor around one vLLM engine.

In: requests (`submit`), aborts, weight updates. Out: one stream of finished rollouts (`rollouts`), in batches
of whatever has finished since the last one, and the engine's progress and times.

One thread owns the engine. Commands go to it through a queue and run between two engine steps; between the
beginning of a weight update and its commit nothing is decoded.
"""

from __future__ import annotations

import asyncio
import os
import queue
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_ray.cluster.private_folder import private_folder
from hpt_ray.cluster.process import memory_mb, prepare_process
from hpt_ray.observe.trace import SpanLog, SpanRecord
from hpt_ray.rollout.engine import EngineSpec, Finished, VllmEngine, environment
from hpt_ray.rollout.requests import GenerateRequest, Sampling
from hpt_ray.types import Rollout


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an engine is: decoding steps done, whether it should be doing more, memory of its process."""

    steps: int
    busy: bool
    memory_mb: float


class RolloutWorker:
    """Serves rollouts of the weights it last committed."""

    def __init__(self, spec: EngineSpec, log_file: str | None):
        prepare_process(
            threads=spec.rollout.num_cpus,
            log_file=log_file,
            environment=environment(spec.rollout),
            gpus=spec.gpus,
        )
        # The processes of an engine meet in a file there.
        tempfile.tempdir = str(private_folder(Path(tempfile.gettempdir())))
        os.environ["TMPDIR"] = tempfile.tempdir
        self._spec = spec
        self._commands: queue.SimpleQueue[tuple[Callable[[VllmEngine], Any], Future]] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Queue[list[Finished] | Exception] = asyncio.Queue()
        self._spans = SpanLog()
        self._steps = 0
        self._busy = False
        self._updating = False  # between begin and commit of a weight update
        self._started: Future = Future()
        self._tokenizer: Any = None

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
                begin = time.time()
                finished = engine.step()
                self._steps += 1
                self._spans.extend("generate", begin, time.time())
                if finished:
                    self._deliver(finished)
        except Exception as error:
            self._refuse(error)

    def _run_commands(self, engine: VllmEngine) -> None:
        """Run queued commands until there is something to decode."""
        while True:
            self._busy = engine.busy and not self._updating
            try:
                command, done = self._commands.get(block=not self._busy)
            except queue.Empty:
                return
            try:
                done.set_result(command(engine))
            except BaseException as error:
                done.set_exception(error)

    def _refuse(self, error: Exception) -> None:
        """The engine is broken: who reads the rollouts, and all who still come, hear why."""
        self._deliver(error)
        while True:
            _, done = self._commands.get()
            done.set_exception(error)

    def _deliver(self, item: list[Finished] | Exception) -> None:
        assert self._loop is not None, "asked before it was started"
        self._loop.call_soon_threadsafe(self._finished.put_nowait, item)

    async def _do(self, command: Callable[[VllmEngine], Any]) -> Any:
        done: Future = Future()
        self._commands.put((command, done))
        return await asyncio.wrap_future(done)

    # -- what the driver calls ---------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when the engine is up; raises what kept it from coming up. Called once."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="engine", daemon=True).start()
        await asyncio.wrap_future(self._started)
        # Only now: two threads that import transformers at the same time get in each other's way.
        from hpt_ray.data.tokenizer import load_tokenizer

        self._tokenizer = load_tokenizer(
            self._spec.model_path, trust_remote_code=self._spec.model.trust_remote_code
        )

    async def submit(self, requests: list[GenerateRequest], sampling: Sampling) -> None:
        """Queue the samples of these prompts; their responses leave through `rollouts`."""

        def add_all(engine: VllmEngine) -> None:
            for request in requests:
                engine.add(request, sampling)

        await self._do(add_all)

    async def rollouts(self) -> AsyncIterator[list[Rollout]]:
        """Finished rollouts, in batches, for as long as the worker lives. For one reader."""
        while True:
            batch = await self._next_batch()
            yield [self._rollout(response) for response in batch]

    async def _next_batch(self) -> list[Finished]:
        batch: list[Finished] = []
        while not batch or not self._finished.empty():
            item = await self._finished.get()
            if isinstance(item, Exception):
                raise item
            batch += item
        return batch

    def _rollout(self, response: Finished) -> Rollout:
        return Rollout(
            prompt_id=response.prompt_id,
            sample=response.sample,
            token_ids=response.token_ids,
            logprobs=response.logprobs,
            finish=response.finish,
            weight_version=response.weight_version,
            text=self._tokenizer.decode(response.token_ids, skip_special_tokens=True),
            prefix_length=response.prefix_length,
        )

    async def abort(self, prompt_ids: set[str]) -> int:
        """Stop generating for these prompts; tokens that had been sampled for what was stopped."""
        return await self._do(lambda engine: engine.abort(prompt_ids))

    async def progress(self) -> Progress:
        return Progress(self._steps, self._busy, memory_mb())

    async def spans(self) -> list[SpanRecord]:
        """What the engine did since the last call."""
        return self._spans.drain()

    async def sleep(self) -> None:
        begin = time.time()
        await self._do(lambda engine: engine.sleep())
        self._spans.add("sleep", begin, time.time())

    async def wake(self, what: str) -> None:
        begin = time.time()
        await self._do(lambda engine: engine.wake(what))
        self._spans.add("wake", begin, time.time())

    # -- weights: a transaction of begin, receive, commit (or abort) -----------------------------------

    async def connect(self, init_info: dict) -> None:
        await self._do(lambda engine: engine.connect(init_info))

    async def begin_update(self, check_each_name: bool) -> None:
        def begin(engine: VllmEngine) -> None:
            self._updating = True
            engine.begin_update(check_each_name=check_each_name)

        await self._do(begin)

    async def receive(self, update_info: dict) -> None:
        begin = time.time()
        await self._do(lambda engine: engine.receive(update_info))
        self._spans.add("receive weights", begin, time.time())

    async def commit_update(self, version: int) -> list[str]:
        def commit(engine: VllmEngine) -> list[str]:
            received = engine.commit_update(version)
            self._updating = False
            return received

        return await self._do(commit)
