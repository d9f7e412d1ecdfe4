"""How a command is carried out: as a process on this machine, here, or as a job of a Ray cluster, in `ray_jobs`.

Both take a `Job` and return an `Outcome`; a failure is an outcome, not an exception. When the task is
cancelled (Ctrl-C, SIGTERM), a local process gets SIGTERM and time to save. A Ray job goes on without us, and
the next call finds it.

`python -m hpt_ray.tools.suite.jobs PARENT MODULE WORDS…` is a local process: a module that ends when its parent
does, however that ends, also by SIGKILL. A run that went on alone would write into a folder that the next call
takes for cut off. Linux only, as everything here.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import runpy
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import ClusterConfig

SAVE_S = 60.0  # for a process to save and end after SIGTERM
MESSAGE_LINES = 3
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclass(frozen=True, slots=True)
class Job:
    """`python -m` and the words after it. `key` tells whether a running job does just this."""

    id: str
    words: tuple[str, ...]
    log: Path
    key: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`error` is empty where the command ended well."""

    seconds: float
    error: str = ""


class Launcher:
    """`open` before anybody asks what is done, `close` after the last job."""

    when_stopped: str  # for people: what became of the jobs under way

    def open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held, unless a launcher says so."""

    def is_under_way(self, job: Job) -> bool:
        """Whether an earlier call has started it and it goes on."""
        return False

    async def run(self, job: Job, timeout_s: float) -> Outcome:
        raise NotImplementedError


class LocalLauncher(Launcher):
    """Processes on this machine, all in one Ray: a run that need not start its own is there sooner."""

    when_stopped = "The runs under way were told to save, and have ended."

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._environment = dict(os.environ)

    def open(self) -> None:
        self._cluster = Cluster.connect(ClusterConfig())
        # With what starting Ray has put into the environment: its token, and that it listens on loopback.
        self._environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()

    async def run(self, job: Job, timeout_s: float) -> Outcome:
        begin = time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        words = (sys.executable, "-m", "hpt_ray.tools.suite.jobs", str(os.getpid()), *job.words)
        with job.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                process_group=0,  # a Ctrl-C is for us, and we tell it
            )
            try:
                code = await asyncio.wait_for(process.wait(), timeout_s)
                error = "" if code == 0 else f"exit code {code}: {last_words(job.log)}"
            except TimeoutError:
                error = f"not done within {timeout_s:.0f} s"
            finally:
                await _end(process)
        return Outcome(time.monotonic() - begin, error)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let it save; then end it."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), SAVE_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def last_words(log: Path) -> str:
    """The last lines of a log, from where it says what went wrong if it does."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [i for i, line in enumerate(lines) if line.startswith(("error: ", "failed: "))]
    chosen = lines[said[-1] :][:MESSAGE_LINES] if said else lines[-MESSAGE_LINES:]
    return " / ".join(chosen) or "it said nothing"


def run_below(parent: str, module: str, *words: str) -> None:
    """Be `python -m MODULE WORDS…`, and end with the process `parent`."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it has ended meanwhile
        sys.exit(1)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run_below(*sys.argv[1:])
