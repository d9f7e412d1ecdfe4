"""How a command is carried out: as a process on this machine, or as a job of a Ray cluster.

Both take a `Job` and return an `Outcome`; a failure is an outcome, not an exception. When the task is
cancelled (Ctrl-C, SIGTERM), a local process gets SIGTERM and time to save. A Ray job goes on without us, and
the next call for the same work finds it by its metadata.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray

from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import ClusterConfig
from hpt_ray.errors import UserError

SAVE_S = 60.0  # for a process to save and end after SIGTERM
POLL_S = 5.0
MESSAGE_LINES = 3


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


class Launcher(Protocol):
    """`open` before the first job, `close` after the last."""

    def open(self) -> None: ...

    async def run(self, job: Job, timeout_s: float) -> Outcome: ...

    def close(self) -> None: ...


class LocalLauncher:
    """Processes on this machine, all in one Ray: a run that need not start its own is there sooner."""

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._environment = dict(os.environ)

    def open(self) -> None:
        self._cluster = Cluster.connect(ClusterConfig())
        self._environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()

    async def run(self, job: Job, timeout_s: float) -> Outcome:
        begin = time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hpt_ray.reproduce.child",
                str(os.getpid()),
                *job.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
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
    chosen = lines[said[-1] :] if said else lines
    return " / ".join(chosen[:MESSAGE_LINES] if said else chosen[-MESSAGE_LINES:]) or "it said nothing"


class RayLauncher:
    """Jobs of a running Ray cluster. The output folder is on storage that the cluster's nodes share."""

    def __init__(self, address: str | None, working_dir: str | None) -> None:
        """`address`: of the dashboard, such as http://127.0.0.1:8265; None: `RAY_API_SERVER_ADDRESS`."""
        from ray.job_submission import JobSubmissionClient

        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"No Ray cluster takes jobs at {address or 'the default address'} ({error}). Give --address "
                "http://HOST:8265 of a cluster started with its dashboard."
            ) from error
        self._runtime_env = {"working_dir": working_dir} if working_dir else {}

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def run(self, job: Job, timeout_s: float) -> Outcome:
        begin = time.monotonic()
        metadata = {"hpt_ray.id": job.id, "hpt_ray.key": job.key}
        submission = await asyncio.to_thread(self._submission, job, metadata)
        while True:
            status = await asyncio.to_thread(self._client.get_job_status, submission)
            if status.is_terminal():
                break
            if time.monotonic() - begin > timeout_s:
                await asyncio.to_thread(self._client.stop_job, submission)
                return Outcome(time.monotonic() - begin, f"not done within {timeout_s:.0f} s")
            await asyncio.sleep(POLL_S)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text(await asyncio.to_thread(self._client.get_job_logs, submission), encoding="utf-8")
        error = "" if status == "SUCCEEDED" else f"job {submission} {status}: {last_words(job.log)}"
        return Outcome(time.monotonic() - begin, error)

    def _submission(self, job: Job, metadata: dict[str, str]) -> str:
        """The job that does this already, from before we were started again; else a new one."""
        for details in self._client.list_jobs():
            if details.metadata == metadata and not details.status.is_terminal() and details.submission_id:
                return details.submission_id
        return self._client.submit_job(
            entrypoint=shlex.join(["python", "-m", *job.words]),
            runtime_env=self._runtime_env,
            metadata=metadata,
        )


LAUNCHERS: dict[str, Callable[[Any], Launcher]] = {
    "local": lambda options: LocalLauncher(),
    "ray": lambda options: RayLauncher(options.address, options.working_dir),
}
