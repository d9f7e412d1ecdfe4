"""SIGINT (Ctrl-C) and SIGTERM, from a command's first line to its last.

The first one is answered by what the command is doing: while it imports it ends, later it unwinds (`Interrupted`),
and what has something to save says so with `answered_by`. Terminals, `timeout` and schedulers signal a process and
its whole group, and fingers slip: what follows within `REFLEX_S` is the same request. A later one gives up at
once: it says what is lost, ends every process that was started here and leaves.

The exit code is 128 + the signal, as a shell has it: 130 or 143.

Nothing heavy is imported here, so that a command can call `watch` before its own imports.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

REFLEX_S = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop, and there is nothing that must be saved first."""


def watch() -> None:
    """Be a command that answers signals, from here to the end of the process."""
    _state.is_command = True
    sys.unraisablehook = _unraisable
    _install()


@contextmanager
def caught() -> Iterator[None]:
    """The first signal raises `Interrupted` here. In another thread than the main one nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.getsignal(number) for number in SIGNALS]
    _install()
    try:
        with answered_by(_interrupt):
            yield
    finally:
        if _state.is_command:
            _state.answer = _ignore  # its work is over
        else:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)
            _state.first = None


@contextmanager
def answered_by(answer: Callable[[], None], at_stake: Callable[[], str] = str) -> Iterator[None]:
    """The first signal calls `answer`, at once where it was overlooked before (an exception in a finalizer is).

    `answer` runs between two instructions of the main thread. `at_stake` says what is lost if a later one gives up.
    """
    before = _state.answer, _state.at_stake
    _state.answer, _state.at_stake = answer, at_stake
    try:
        if _state.first is not None:
            answer()
        yield
    finally:
        _state.answer, _state.at_stake = before


def exit_code() -> int:
    """Of a process that was asked to stop."""
    return 128 + (signal.SIGTERM if _state.first is None else _state.first[0])


def leave(said: str) -> int:
    """Say the last line, and return the exit code. A command ends here: no thread is waited for, no child left."""
    print(said, file=sys.stderr, flush=True)
    if not _state.is_command:
        return exit_code()
    atexit._run_exitfuncs()
    _end(exit_code())


class _State:
    """What the handler knows. Signals belong to the process, and so does this."""

    def __init__(self) -> None:
        self.is_command = False
        self.first: tuple[int, float] | None = None  # its number, and when it came
        self.answer: Callable[[], None] = _end_of_imports
        self.at_stake: Callable[[], str] = str


def _install() -> None:
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.first is None:
        _state.first = number, now
        _state.answer()
    elif now - _state.first[1] > REFLEX_S:
        _say(f"Gave up. {_state.at_stake()}".rstrip())
        _end(128 + number)


def _interrupt() -> NoReturn:
    # What the event loop has to say about tasks that are cut off is no news.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    raise Interrupted


def _ignore() -> None:
    pass


def _end_of_imports() -> NoReturn:
    _say("Stopped before anything was begun.")
    os._exit(exit_code())


def _unraisable(raised: sys.UnraisableHookArgs) -> None:
    """`Interrupted` in a finalizer is lost and not worth a traceback; `answered_by` asks again."""
    if not issubclass(raised.exc_type, Interrupted):
        sys.__unraisablehook__(raised)


def _say(text: str) -> None:
    """On stderr, past its buffer, which may be in use; on a terminal below a line that is being drawn."""
    start = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{start}{text}\n".encode())


def _end(code: int) -> NoReturn:
    """Kill every process that was started here, and end."""
    import psutil

    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


_state = _State()
