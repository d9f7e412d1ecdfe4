"""Grading in processes that can be killed: tasks in, results out, without Ray.

One thread per process takes tasks from a queue that all callers share, hands its process one response at a
time and waits for the result, at most `timeout_s`. So a time-out, a crash or a lack of memory always belongs
to exactly one response: the process is killed (with whatever it started, see `keeper.py`) and replaced, and no other
response is touched. A response whose process died is tried once more in a fresh one, so that what was graded
before it cannot change its result. Loading a reward function does not count towards the limit.

Processes are started anew (`main` below), not forked: this is safe beside threads and in Ray actors, and they
hold none of the parent's memory. What they send is JSON, checked as it comes in: reading it can run nothing. They
import neither Ray, torch nor vLLM, and sympy only with a reward function that needs it. The pool does not choose
reward functions (`service.py` does).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from hpt_ray.config.references import public
from hpt_ray.config.schema import RewardConfig
from hpt_ray.reward.environment import clean_environment, hint
from hpt_ray.reward.functions.returned import MAX_DETAIL_CHARS, to_result
from hpt_ray.reward.functions.row import NO_ROW, Row
from hpt_ray.reward.functions.table import RewardFunction, build, takes_headers, takes_row
from hpt_ray.reward.keeper import work_under_a_keeper
from hpt_ray.text import PrintableStream, redacted, storable
from hpt_ray.types import Outcome, RewardResult
from hpt_ray.utils.plugins import load_inherited

NUM_TRIES = 2  # of a response whose process dies
LOAD_TIMEOUT_S = 60.0  # importing a reward function, on both sides
ORPHAN_GRACE_S = 5.0  # the parent's kill comes first
OUT_OF_MEMORY = 77  # exit code
END_S = 5.0  # for a keeper to end all that is below it
MAX_REPLY_BYTES = 1_000_000
BUFFER_BYTES = 2**18  # a long response is then read at once

_CHILD = "import sys; from hpt_ray.reward.pool import main; main(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Task:
    """One response to grade, and by which reward function (see `functions/table.py`)."""

    reward_function: str
    response: str
    ground_truth: Any
    row: Row = NO_ROW  # sent along to reward functions that take it

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of the reward function. Ours read the thinking that the prompt opened as the response's own."""
        if takes_row(self.reward_function):
            return (self.response, self.ground_truth, self.row)
        return (self.row.opening + self.response, self.ground_truth)


class Pool:
    """`num_processes` killable grading processes behind one queue.

    `preload` names reward functions that each process loads as it starts. Making the pool does not wait for
    anything. What the caller's process loaded as `run.plugins`, the processes import as well. What they print
    is added to the file `output`; without one it goes where the caller's goes. `headers` go to reward functions that
    ask a server. `environment` names the variables that the processes get beside those every program needs.
    """

    def __init__(
        self,
        num_processes: int = 1,
        *,
        timeout_s: float = 10.0,
        memory_mb: int = 2048,
        preload: Sequence[str] = (),
        output: str | None = None,
        headers: Mapping[str, str] | None = None,
        environment: Sequence[str] = (),
    ) -> None:
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.preload = tuple(preload)
        self.output = output
        self.headers = dict(headers or {})
        self.environment = clean_environment(environment)
        self.closed = False
        self.queue: queue.SimpleQueue[tuple[_Batch, int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is queued once `closed` is set
        self._workers = [_Worker(self) for _ in range(num_processes)]
        for worker in self._workers:
            worker.start()

    @classmethod
    def of(cls, config: RewardConfig, *, preload: Sequence[str] = (), output: str | None = None) -> Pool:
        """As the section `reward` wants it."""
        return cls(
            config.num_processes,
            timeout_s=config.timeout_s,
            memory_mb=config.memory_mb,
            preload=preload,
            output=output,
            headers=config.headers,
            environment=config.environment,
        )

    @property
    def num_replaced(self) -> int:
        """How many processes ended before the pool was closed."""
        return sum(worker.num_replaced for worker in self._workers)

    def submit(self, tasks: Sequence[Task]) -> Future[list[RewardResult]]:
        """Queue the tasks. The future holds their results in the same order. Safe from any thread.

        Raises RuntimeError when the pool is closed, and in the future when no process can be started.
        """
        batch = _Batch(tasks)
        with self._lock:
            if self.closed:
                raise RuntimeError("the reward processes are stopped")
            for index in range(len(tasks)):
                self.queue.put((batch, index))
        return batch

    def grade(self, tasks: Sequence[Task]) -> list[RewardResult]:
        """The results of the tasks, in order."""
        return self.submit(tasks).result()

    def close(self) -> None:
        """End all processes. Responses that still wait get the outcome `error`."""
        with self._lock:
            self.closed = True
        for worker in self._workers:
            worker.kill()
            self.queue.put(None)
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Batch(Future[list[RewardResult]]):
    """The tasks of one call, and their results as they come in."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = tasks
        self._results: dict[int, RewardResult] = {}
        self._lock = threading.Lock()
        self.set_running_or_notify_cancel()  # what is queued is graded, even if nobody waits for it any more
        if not tasks:
            self.set_result([])

    def add(self, index: int, result: RewardResult) -> None:
        with self._lock:
            self._results[index] = result
            if len(self._results) == len(self.tasks):
                self.set_result([self._results[i] for i in range(len(self.tasks))])

    def fail(self, error: Exception) -> None:
        with self._lock:
            if not self.done():
                self.set_exception(error)


class _CannotStart(RuntimeError):
    """No grading process could be started; the message says why."""


class _Ended(Exception):
    """The grading process is gone; the message says how."""


class _Worker(threading.Thread):
    """One thread, the grading process that it keeps running, and the socket between them."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="grading", daemon=True)
        self.num_replaced = 0
        self._pool = pool
        self._popen: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        while True:
            with contextlib.suppress(_CannotStart, _Ended):  # the next task meets the same, and reports it
                self._start()
                for name in self._pool.preload:
                    self._load(name)
            entry = self._pool.queue.get()
            if entry is None:
                return self._end()
            batch, index = entry
            try:
                batch.add(index, self._grade(batch.tasks[index]))
            except _CannotStart as error:
                batch.fail(error)

    def kill(self) -> int:
        """End the process and whatever it started, now. Returns its `returncode`. From any thread."""
        popen = self._popen
        if popen is None:
            return 0
        popen.terminate()
        try:
            return popen.wait(END_S)
        except subprocess.TimeoutExpired:
            popen.kill()
            return popen.wait()

    def _grade(self, task: Task) -> RewardResult:
        """The result of one task, whatever it does to the process. Raises _CannotStart."""
        try:
            request = pickle.dumps((task.reward_function, task.arguments, {}))
        except Exception as error:
            return _error(f"the ground truth cannot be sent to another process: {error}")
        for _ in range(NUM_TRIES):
            try:
                self._start()
                if reason := self._load(task.reward_function):
                    return _error(
                        f"reward function {public(task.reward_function)} could not be loaded: {reason}"
                        f"{hint(reason, self._pool.environment)}"
                    )
                result = to_result(RewardResult(*self._ask(request, self._pool.timeout_s)))
                detail = result.detail or ""
                if result.outcome is Outcome.ERROR and (more := hint(detail, self._pool.environment)):
                    return replace(result, detail=detail[: MAX_DETAIL_CHARS - len(more)] + more)
                return result
            except (TypeError, ValueError) as error:
                return _error(f"the grading process sent no result: {error}")
            except TimeoutError:
                self._end()
                detail = f"not graded within {self._pool.timeout_s:g} s"
                return RewardResult(0.0, Outcome.TIMEOUT, detail=detail)
            except _Ended as error:
                self._end()
                result = _error(str(error))
        return result

    def _start(self) -> None:
        """Start the process unless it is there. Raises _CannotStart, or _Ended when the pool is closed."""
        if self._pool.closed:
            raise _Ended("the reward processes were stopped")
        if self._popen is not None:
            return
        self._loaded: set[str] = set()
        try:
            self._socket, theirs = socket.socketpair()
            self._reader = self._socket.makefile("rb")
            arguments = map(str, (theirs.fileno(), self._pool.timeout_s, self._pool.memory_mb))
            output = self._pool.output
            with theirs, open(output, "ab") if output else contextlib.nullcontext() as file:
                self._popen = subprocess.Popen(
                    [sys.executable, "-P", "-c", _CHILD, *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=self._pool.environment,
                    start_new_session=True,  # so that it dies with its own children, and not by Ctrl-C
                )
        except OSError as error:
            raise _CannotStart(f"no grading process could be started: {error}") from error
        if self._pool.closed:  # perhaps `close` looked before the process was there
            self.kill()

    def _load(self, name: str) -> str | None:
        """Load a reward function unless that is done; a text says why it failed. Raises _Ended."""
        if name in self._loaded:
            return None
        try:
            headers = self._pool.headers if takes_headers(name) else {}
            reason = self._ask(pickle.dumps((name, None, headers)), LOAD_TIMEOUT_S)
        except TimeoutError:  # a second try would take as long
            self._end()
            return f"that took longer than {LOAD_TIMEOUT_S:g} s"
        if reason is None:
            self._loaded.add(name)
        return reason

    def _ask(self, request: bytes, limit_s: float) -> Any:
        """Send a pickled request and wait for its reply, JSON. After TimeoutError or _Ended the process is dead."""
        self._socket.settimeout(limit_s)
        try:
            self._socket.sendall(request)
            line = self._reader.readline(MAX_REPLY_BYTES)
            if not line.endswith(b"\n"):
                raise EOFError
            return json.loads(line)
        except TimeoutError:
            self.kill()
            raise
        except (EOFError, OSError, ValueError, RecursionError) as error:
            code = self.kill()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            if code == OUT_OF_MEMORY:
                raise _Ended(f"needed more than {self._pool.memory_mb} MB of address space") from error
            raise _Ended(f"the grading process ended ({how})") from error

    def _end(self) -> None:
        """Be rid of the process, if there is one; `_start` replaces it."""
        if self._popen is not None:
            self.kill()
            self._reader.close()
            self._socket.close()
            self._popen = None
            self.num_replaced += not self._pool.closed


def _error(detail: str) -> RewardResult:
    return RewardResult(0.0, Outcome.ERROR, detail=redacted(detail))


# -- in the grading process ------------------------------------------------------------------------


def main(descriptor: str, timeout_s: str, memory_mb: str) -> None:
    """Take requests from a socket, one at a time, until it ends. Each reply is a line of JSON.

    A request is a pickled `(name, None, headers)`: load this reward function; the reply is null or why that failed.
    Or it is `(name, arguments, {})`; the reply is the values of a RewardResult. A task that runs into the limit of the
    address space ends the process with exit code `OUT_OF_MEMORY`, since nothing can be trusted after that. Time
    limits are the parent's: the alarm only ends a process whose parent has vanished.
    """
    work_under_a_keeper(int(descriptor))
    limit = int(memory_mb) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.stdout, sys.stderr = PrintableStream(sys.stdout), PrintableStream(sys.stderr)  # type: ignore[assignment]
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    reader, writer = connection.makefile("rb", BUFFER_BYTES), connection.makefile("wb")
    functions: dict[str, RewardFunction] = {}
    try:
        while True:
            name, task, headers = pickle.load(reader)
            limit_s = LOAD_TIMEOUT_S if task is None else float(timeout_s)
            signal.setitimer(signal.ITIMER_REAL, limit_s + ORPHAN_GRACE_S)
            reply = (
                _load(functions, name, headers) if task is None else _values(_grade(functions[name], task))
            )
            signal.setitimer(signal.ITIMER_REAL, 0)
            writer.write(json.dumps(reply).encode() + b"\n")
            writer.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except (EOFError, ConnectionError):
        pass  # nobody asks any more


def _load(functions: dict[str, RewardFunction], name: str, headers: Mapping[str, str]) -> str | None:
    try:
        load_inherited()
        functions[name] = build(name, headers)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        return _describe(error)
    return None


def _grade(function: RewardFunction, arguments: tuple[Any, ...]) -> RewardResult:
    try:
        return to_result(function(*arguments))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # becomes the outcome `error`, which is counted
        return _error(_describe(error))


def _values(result: RewardResult) -> list[Any]:
    return [result.score, result.outcome, result.extracted, result.detail, dict(result.metrics)]


def _describe(error: BaseException) -> str:
    """What went wrong, and what notes say of it: where, and with which arguments."""
    try:
        said = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
        return "; ".join(storable(text[:MAX_DETAIL_CHARS]) for text in said)
    except Exception:  # an error of the user's own class may not even have a text
        return type(error).__name__
