"""Grading in processes that can be killed: tasks in, results out, without Ray.

One thread per process takes tasks from a queue that all callers share, hands the process one answer at a
time and waits for its result, at most `timeout_s`. So a time-out, a crash or a lack of memory always belongs
to exactly one answer: the process is killed (SIGKILL, with whatever it started) and replaced, and no other
answer is touched. An answer whose process died is tried once more in a fresh one, so that what was graded
before it cannot change its result. Loading a reward function does not count towards the limit.

Processes are started anew (`worker.py`), not forked: this is safe beside threads and in
Ray actors, and they hold none of the parent's memory. The pool does not choose reward functions (`service.py` does).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hpt_ray
from hpt_ray.reward.worker import LOAD_TIMEOUT_S, OUT_OF_MEMORY
from hpt_ray.types import Outcome, RewardResult

NUM_TRIES = 2  # of an answer whose process dies

_CHILD = "from hpt_ray.reward.worker import main; main()"
_PACKAGE_PARENT = str(Path(hpt_ray.__file__).resolve().parents[1])


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to grade, and by which reward function (see `reward_functions/table.py`)."""

    reward_function: str
    response: str
    ground_truth: Any


@dataclass(slots=True)
class _Job:
    """The tasks of one call and their results so far."""

    tasks: Sequence[Task]
    results: list[RewardResult | None]
    remaining: int
    future: Future[list[RewardResult]] = field(default_factory=Future)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, index: int, result: RewardResult) -> None:
        with self.lock:
            self.results[index] = result
            self.remaining -= 1
            done = self.remaining == 0
        if done and self.future.set_running_or_notify_cancel():
            self.future.set_result(self.results)  # type: ignore[arg-type]  # all of them are set

    def fail(self, error: Exception) -> None:
        with self.lock:
            if not self.future.done():
                self.future.set_exception(error)


def _error(detail: str) -> RewardResult:
    return RewardResult(0.0, Outcome.ERROR, detail=detail)


class ProcessEnded(Exception):
    """The grading process is gone; the message says how."""


class _Process:
    """One grading process and the socket to it. Used by a single thread, except for `kill`."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.loaded: set[str] = set()
        self.socket, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([_PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONHASHSEED": "0",  # sympy's order of terms, the same in every process
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",  # each of its threads would reserve address space
        }
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, *map(str, (theirs.fileno(), timeout_s, memory_mb))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # so that it dies with its own children, and not by Ctrl-C
            )
        self.reader = self.socket.makefile("rb")

    def load(self, reward_function: str) -> str | None:
        """Load a reward function; a text says why that failed."""
        if reward_function not in self.loaded:
            try:
                reason = self.ask(pickle.dumps((reward_function, None)), LOAD_TIMEOUT_S)
            except TimeoutError as error:
                raise ProcessEnded(
                    f"reward function {reward_function} was not loaded within {LOAD_TIMEOUT_S:g} s"
                ) from error
            if reason is not None:
                return reason
            self.loaded.add(reward_function)
        return None

    def ask(self, request: bytes, limit_s: float) -> Any:
        """Send a pickled request and wait for its reply. Raises TimeoutError or ProcessEnded."""
        self.socket.settimeout(limit_s)
        try:
            self.socket.sendall(request)
            return pickle.load(self.reader)
        except (EOFError, ConnectionError, pickle.UnpicklingError) as error:
            raise ProcessEnded(self._how_it_ended()) from error

    def _how_it_ended(self) -> str:
        self.kill()
        code = self.popen.returncode
        if code == OUT_OF_MEMORY:
            return f"needed more than {self.memory_mb} MB of address space"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the grading process ended ({how})"

    def kill(self) -> None:
        """End the process and whatever it started, now."""
        if self.popen.returncode is None:  # until it is waited for, its id cannot belong to another process
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def close(self) -> None:
        self.kill()
        self.reader.close()
        self.socket.close()


class Pool:
    """`num_processes` killable grading processes behind one queue.

    `preload` names reward functions that each process loads as it starts. Starting does not wait for anything.
    """

    def __init__(
        self,
        num_processes: int = 1,
        *,
        timeout_s: float = 10.0,
        memory_mb: int = 2048,
        preload: Sequence[str] = (),
    ) -> None:
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.preload = tuple(preload)
        self.num_replaced = 0
        self._queue: queue.SimpleQueue[tuple[_Job, int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._processes: set[_Process] = set()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"grading-{number}", daemon=True)
            for number in range(num_processes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tasks: Sequence[Task]) -> Future[list[RewardResult]]:
        """Queue the tasks. The future holds their results in the same order. Safe from any thread."""
        job = _Job(tasks, [None] * len(tasks), len(tasks))
        with self._lock:
            if self._closed:
                raise RuntimeError("the grading pool is closed")
            for index in range(len(tasks)):
                self._queue.put((job, index))
        if not tasks:
            job.future.set_result([])
        return job.future

    def grade(self, tasks: Sequence[Task]) -> list[RewardResult]:
        """The results of the tasks, in order."""
        return self.submit(tasks).result()

    def close(self) -> None:
        """End all processes. Answers that still wait get the outcome `error`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for process in self._processes:
                process.kill()
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        """The life of one thread: keep one process, grade what the queue holds."""
        process: _Process | None = None
        while True:
            try:
                process = process or self._start()
            except OSError as error:
                failure: Exception = RuntimeError(f"no grading process could be started: {error}")
            if (entry := self._queue.get()) is None:
                break
            job, index = entry
            if process is None:
                job.fail(failure)
                continue
            result, process = self._grade(job.tasks[index], process)
            job.set(index, result)
        if process is not None:
            self._end(process)

    def _grade(self, task: Task, process: _Process | None) -> tuple[RewardResult, _Process | None]:
        """The result of one task, and the process to go on with (None: it has to be replaced)."""
        try:
            request = pickle.dumps((task.reward_function, (task.response, task.ground_truth)))
        except Exception as error:
            return _error(f"the ground truth cannot be sent to another process: {error}"), process
        result = _error("the grading pool was closed")
        for _ in range(NUM_TRIES):
            if self._closed:
                break
            try:
                process = process or self._start()
                reason = process.load(task.reward_function)
                if reason is not None:
                    return _error(
                        f"reward function {task.reward_function} could not be loaded: {reason}"
                    ), process
                return process.ask(request, self.timeout_s), process
            except TimeoutError:
                result = RewardResult(0.0, Outcome.TIMEOUT, detail=f"not graded within {self.timeout_s:g} s")
            except (ProcessEnded, OSError) as error:
                result = _error(str(error))
            if process is not None:
                self._end(process)
                process = None
            if result.outcome is Outcome.TIMEOUT:
                break
        return result, process

    def _start(self) -> _Process:
        process = _Process(self.timeout_s, self.memory_mb)
        with self._lock:
            self._processes.add(process)
            if self._closed:
                process.kill()
        try:
            for reward_function in self.preload:
                process.load(
                    reward_function
                )  # a failure comes back with the first task of that reward function
        except ProcessEnded:
            process.kill()  # the first task finds it ended and reports how
        return process

    def _end(self, process: _Process) -> None:
        with self._lock:
            self._processes.discard(process)
            self.num_replaced += not self._closed
        process.close()
