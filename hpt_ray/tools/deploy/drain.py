"""Before a pod ends: let the run in it save.

Kubernetes runs this in the pod (its preStop hook) before it sends SIGTERM to Ray, which would end every process at
once. On the head, where the job server answers, running jobs are stopped the way `ray job stop` does it: the driver
gets SIGTERM, saves and ends. On a worker there is nothing to tell; its actors are needed for the save, so it waits
until they are gone. How long a pod may take in all is its terminationGracePeriodSeconds.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import psutil

JOB_SERVER = "http://127.0.0.1:8265"
PROBE_TIMEOUT_S = 2.0
POLL_S = 0.5


def drain(job_server: str, timeout_s: float) -> bool:
    """Whether nothing of a run is left in this pod within `timeout_s` seconds."""
    is_done = _stop_jobs(job_server) if _answers(job_server) else lambda: not actors()
    end_s = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > end_s:
            return False
        time.sleep(POLL_S)
    return True


def actors() -> list[psutil.Process]:
    """The busy workers of Ray on this machine: it writes `ray::` and what they do over their names."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        name = next(iter(process.info["cmdline"] or ()), "")  # None: not ours to look at
        if name.startswith("ray::") and name != "ray::IDLE":
            found.append(process)
    return found


def _answers(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _stop_jobs(url: str) -> Callable[[], bool]:
    """Ask every job to stop, which is safe to ask twice; the result says whether all have ended."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(url)
    running = [job.submission_id for job in client.list_jobs() if not job.status.is_terminal()]
    jobs = [job for job in running if job is not None]  # None: a driver that is no job
    for job in jobs:
        client.stop_job(job)
    return lambda: all(client.get_job_status(job).is_terminal() for job in jobs)
