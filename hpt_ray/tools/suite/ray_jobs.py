"""Commands as jobs of a running Ray cluster, submitted to its job server and waited for.

In: a `Job`. Out: an `Outcome`, as of a process. A job goes on when this process ends; the next one finds it by its
metadata, which is the job's id and key. What is under way is looked up once, at `open`, before anybody asks what is
done: a job that ends well in between is then either done or still ours, and never submitted again.

The job server may be away for a while. After `PATIENCE_S` that is a `UserError` and not an outcome, for the jobs
may well be running. Files are not moved: whoever submits and whoever runs see the same output folder.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from hpt_ray.errors import UserError
from hpt_ray.tools.suite.jobs import Job, Launcher, Outcome, last_words

POLL_S = 5.0
REQUEST_S = 60.0  # for the job server to answer
PATIENCE_S = 300.0  # for it to come back
SAVE_S = 900.0  # for a job to save and end after SIGTERM, as in deploy/runtime_env.yaml
AWAY = (requests.RequestException, RuntimeError)  # it does not answer; it answers with a failure
NOISY = ("ray", "ray.dashboard.modules.dashboard_sdk")  # list what each upload leaves out

T = TypeVar("T")


class RayLauncher(Launcher):
    """Jobs of a Ray cluster; see the module."""

    when_stopped = "The jobs under way go on in the cluster. `ray job stop` ends one."

    def __init__(self, address: str | None, working_dir: str | None) -> None:
        """`address`: of the dashboard, such as http://127.0.0.1:8265; None: `RAY_API_SERVER_ADDRESS`."""
        if working_dir and "://" not in working_dir and not Path(working_dir).is_dir():
            raise UserError(f"--working-dir {working_dir}: no such folder.")
        self._address = address
        self._runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": f"{SAVE_S:.0f}"}}
        if working_dir:
            self._runtime_env["working_dir"] = working_dir
        self._client: JobSubmissionClient
        self._under_way: dict[tuple[str, str], str] = {}

    def open(self) -> None:
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            self._client = _Client(self._address)
            self._under_way = self._find()
        except (AuthenticationError, ConnectionError, ValueError, *AWAY) as error:
            raise UserError(
                f"No Ray cluster takes jobs at {self._address or 'the default address'} ({error}). Give --address "
                "http://HOST:8265 of a cluster started with its dashboard."
            ) from error

    def is_under_way(self, job: Job) -> bool:
        return (job.id, job.key) in self._under_way

    async def run(self, job: Job, timeout_s: float) -> Outcome:
        """`timeout_s` counts from the job's own start, whoever submitted it."""
        if (submission := self._under_way.get((job.id, job.key))) is None:
            submission = await self._ask(self._submit, job)
        details = await self._watch(submission, timeout_s)
        is_late = details is not None and not details.status.is_terminal()
        if details and is_late:
            await self._ask(self._client.stop_job, submission)
            details = await self._watch(submission, _age_s(details) + SAVE_S + REQUEST_S)
        if details is None:
            return Outcome(0.0, f"the cluster does not know its job {submission} any more: is it a new one?")
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text(await asyncio.to_thread(self._log, submission), encoding="utf-8")
        error = _error(job, details)
        return Outcome(_age_s(details), f"not done within {timeout_s:.0f} s" if error and is_late else error)

    async def _watch(self, submission: str, limit_s: float) -> JobDetails | None:
        """The job once it has ended or is older than the limit; None where the cluster does not know it."""
        while True:
            details = (await self._ask(self._jobs)).get(submission)
            if details is None or details.status.is_terminal() or _age_s(details) > limit_s:
                return details
            await asyncio.sleep(POLL_S)

    async def _ask(self, call: Callable[..., T], *arguments: Any) -> T:
        """What the job server says, once it answers."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(call, *arguments)
            except AWAY as error:
                if time.monotonic() > give_up:
                    raise UserError(
                        f"The job server at {self._address or 'the default address'} has failed for "
                        f"{PATIENCE_S:.0f} s ({error}). Its jobs may go on; when it is well, the same command does."
                    ) from error
            await asyncio.sleep(POLL_S)

    def _submit(self, job: Job) -> str:
        """A new job; the one that is there where the answer to an earlier request was lost."""
        return self._find().get((job.id, job.key)) or self._client.submit_job(
            entrypoint=shlex.join(["python", "-m", *job.words]),
            runtime_env=self._runtime_env,
            metadata={"hpt_ray.id": job.id, "hpt_ray.key": job.key},
        )

    def _find(self) -> dict[tuple[str, str], str]:
        """The jobs under way by id and key, ours and others'."""
        return {
            (details.metadata.get("hpt_ray.id", ""), details.metadata.get("hpt_ray.key", "")): submission
            for submission, details in self._jobs().items()
            if details.metadata and not details.status.is_terminal()
        }

    def _jobs(self) -> dict[str, JobDetails]:
        """All jobs that the cluster knows, by submission id."""
        return {job.submission_id: job for job in self._client.list_jobs() if job.submission_id}

    def _log(self, submission: str) -> str:
        try:
            return self._client.get_job_logs(submission)
        except AWAY as error:  # its node is gone
            return f"The log cannot be read: {error}\n"


class _Client(JobSubmissionClient):
    """Every request has a limit; Ray's own have none."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        return super()._do_request(*arguments, timeout=REQUEST_S, **options)


def _age_s(details: JobDetails) -> float:
    """From its submission until it ended, or until now."""
    end = details.end_time or 1000 * time.time()
    return max(0.0, end - (details.start_time or end)) / 1000


def _error(job: Job, details: JobDetails) -> str:
    """What went wrong: Ray's word on a job that said nothing, such as one that could not be started."""
    if details.status is JobStatus.SUCCEEDED:
        return ""
    code = details.driver_exit_code
    how = f"{details.status}" if code is None else f"exit code {code}"
    has_spoken = job.log.read_text(encoding="utf-8").strip()
    words = last_words(job.log) if has_spoken else " ".join((details.message or "it said nothing").split())
    return f"{how}: {words} (job {details.submission_id})"
