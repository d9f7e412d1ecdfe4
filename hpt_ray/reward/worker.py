"""The grading process: reads tasks from a socket, one at a time, and answers each with a result.

Started by `pool.py` with the arguments FD TIMEOUT_S MEMORY_MB. A request is a pickled
`(reward_function, None)` (load this reward function; the reply is None or the reason it failed) or
`(reward_function, (response, ground_truth))` (the reply is a Result). The process ends when the socket does.

It imports neither Ray, torch nor vLLM, and sympy only when a reward function that needs it is loaded. It limits
its own address space; a task that runs into the limit ends the process with exit code `OUT_OF_MEMORY`,
since nothing can be trusted after that. Time limits are the parent's; the alarm set here only makes
sure that a process whose parent has vanished does not go on for ever.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import socket
import sys
from dataclasses import replace
from typing import Any

from hpt_ray.reward.functions.table import Grade, build
from hpt_ray.types import Outcome, RewardResult

OUT_OF_MEMORY = 77
ORPHAN_GRACE_S = 5.0  # the parent's kill comes first
LOAD_TIMEOUT_S = 60.0  # importing a reward function, on both sides
MAX_EXTRACTED_CHARS = 500  # a result stays small whatever the answer was
MAX_DETAIL_CHARS = 300


def serve(connection: socket.socket, timeout_s: float) -> None:
    reward_functions: dict[str, Grade] = {}
    reader, writer = connection.makefile("rb"), connection.makefile("wb")
    while True:
        try:
            spec, task = pickle.load(reader)
        except (EOFError, ConnectionError):
            return
        limit_s = timeout_s if task is not None else LOAD_TIMEOUT_S
        signal.setitimer(signal.ITIMER_REAL, limit_s + ORPHAN_GRACE_S)
        reply = _load(reward_functions, spec) if task is None else _grade(reward_functions[spec], *task)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pickle.dump(reply, writer)
        writer.flush()


def _load(reward_functions: dict[str, Grade], spec: str) -> str | None:
    try:
        reward_functions[spec] = build(spec)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        return _describe(error)
    return None


def _grade(grade: Grade, response: str, ground_truth: Any) -> RewardResult:
    try:
        result = grade(response, ground_truth)
        if result.extracted is not None and len(result.extracted) > MAX_EXTRACTED_CHARS:
            result = replace(result, extracted=result.extracted[:MAX_EXTRACTED_CHARS] + "…")
        return result
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # becomes the outcome `error`, which is counted
        return RewardResult(0.0, Outcome.ERROR, detail=_describe(error))


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]


def main() -> None:
    descriptor, timeout_s, memory_mb = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    limit = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        serve(socket.socket(fileno=descriptor), timeout_s)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
