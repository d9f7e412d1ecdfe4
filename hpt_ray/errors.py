"""The errors that end a run, by who has to act, and the exit codes they become."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from hpt_ray.text import printable


class UserError(ValueError):
    """Something the user must change: a path, a key, a value, a data row.

    The message names the thing and says what to do. `python -m hpt_ray.main` prints it without a
    traceback and exits with code 2.
    """


class Stopped(Exception):
    """The run was asked to stop. The message says how far it came and what of it is saved."""


class WaitExpired(RuntimeError):
    """A remote wait passed its limit. The message says who was waited for, how long and for what."""


class LearnerFailed(RuntimeError):
    """A learner rank died, erred or did not answer. The message says which and why."""


class TrainingDiverged(RuntimeError):
    """Update after update came out as nothing. The message says how many and why."""


class RewardsFailed(RuntimeError):
    """Too many responses of a step have no reward. The message says how many, why, and where they are."""


class SamplerMismatch(RuntimeError):
    """Sampler and learner do not compute the same model. The message says how far apart they are."""


class NoWorkerLeft(RuntimeError):
    """Every rollout worker has failed too often. The message says which and why."""


def in_one_line(error: BaseException) -> str:
    """What went wrong. An error raised in an actor arrives wrapped, with a traceback that its log has as well."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"


def failures_of(work: Callable[[], object]) -> list[str]:
    """Do it; what went wrong, if it could not be done, in one line."""
    try:
        work()
    except Exception as error:
        return [in_one_line(error)]
    return []


def exit_code(error: Exception, logs: Path | None = None) -> int:
    """Say on stderr what went wrong, and return 2 where the user must change something, else 1.

    The traceback of a failure goes to `driver.log` in the folder `logs`, or to stderr without one.
    """
    # An error raised inside an actor arrives wrapped; the cause is the one that was raised there.
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, UserError):
        print(printable(f"error: {cause}"), file=sys.stderr)
        return 2
    text = printable("".join(traceback.format_exception(error)))
    where = ""
    if logs is not None:
        where = f"\nTraceback and the actors' output: {logs}"
        try:
            (logs / "driver.log").write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as unwritten:
            where = f"\nThe traceback could not be written to {logs / 'driver.log'}: {unwritten}"
    elif not is_full(cause):
        print(text, file=sys.stderr)
    if is_full(cause):
        # An error as a file is closed does not say which.
        there = (
            "there" if logs is None or getattr(cause, "filename", None) else f"on the disk of {logs.parent}"
        )
        where = f"\nMake room {there} and start again: what was saved stays.{where}"
    print(printable(f"failed: {type(cause).__name__.lstrip('_')}: {cause}{where}"), file=sys.stderr)
    return 1


def is_full(error: BaseException) -> bool:
    """Whether a disk is full or a quota used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
