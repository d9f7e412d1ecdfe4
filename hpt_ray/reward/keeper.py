"""Whatever a reward function starts ends with it, also what has left its process group and its session.

A grading process works under a keeper, its parent: the kernel gives the keeper every process below it whose own parent
ends (`PR_SET_CHILD_SUBREAPER`), and the keeper kills them all once the grading process has ended, or at SIGTERM. It
then ends as the grading process did. A keeper that is killed takes the grading process along.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
AWAITED = (signal.SIGTERM, signal.SIGCHLD)


def work_under_a_keeper(descriptor: int) -> None:
    """Returns in a new process, the grading process. This one becomes its keeper, without the open `descriptor`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    libc, keeper = ctypes.CDLL(None), os.getpid()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    worker = os.fork()
    if worker:
        os.close(descriptor)
        _keep(worker)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:  # it ended before it was asked for
        os._exit(1)


def _keep(worker: int) -> NoReturn:
    status = None
    while status is None:
        if signal.sigwait(AWAITED) == signal.SIGTERM:
            os.kill(worker, signal.SIGKILL)  # until it is waited for, its id cannot belong to another process
        status = _ended().get(worker)
    while children := list(_children()):
        for child in children:
            os.kill(child, signal.SIGKILL)
        os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)  # not of SIGKILL
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code)


def _ended() -> dict[int, int]:
    """The children that have ended since the last call, each with its status."""
    found = {}
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            found[child[0]] = child[1]
    return found


def _children() -> Iterator[int]:
    """Also those that have ended and are not waited for yet."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            state_and_parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(state_and_parent[1]) == os.getpid():
                yield int(folder.name)
