"""One writer for a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOOK_EVERY_S = 0.5


def try_lock(file: IO) -> bool:
    """Hold an open file until it is closed. False where somebody else does.

    On a file system without locks nobody is kept out, and a warning says so.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logging.getLogger(__name__).warning(
            "%s cannot be locked (%s): nobody else may write", file.name, error
        )
    return True


@contextmanager
def alone(
    folder: Path, *, wait_s: float = 0.0, when_waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Be the only one that writes to `folder`.

    Waits up to `wait_s` for whoever does, after `when_waiting`; then raises `TimeoutError`.
    """
    with (folder / ".lock").open("w") as file:
        deadline = time.monotonic() + wait_s
        while not try_lock(file):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"somebody else writes to {folder}")
            if when_waiting is not None:
                when_waiting()
                when_waiting = None
            time.sleep(LOOK_EVERY_S)
        yield
