"""SIGINT (Ctrl-C), SIGTERM, and SIGHUP of a terminal that was closed, from a command's first line to its last.

The first one ends the command at once, with every process that it started, unless the command answers it itself
because it has something to save (`answered_by`). Terminals, `timeout` and schedulers signal a process and its whole
group, and fingers slip: what follows within `REFLEX_S` is the same request. A later one gives up: it says what is
lost and ends the command at once.

The exit code is 128 + the signal, as shells have it: 130, 143 or 129. Nothing heavy is imported here, so that a command
can `watch` before its own imports.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from hpt_ray.text import printable

REFLEX_S = 2.0
# `nohup` has SIGHUP ignored, and means it.
HANG_UP = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *HANG_UP)


def watch() -> None:
    """Be a command that answers signals, from here to the end of the process."""
    _state.is_command = True
    _state.terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    _install()


@contextmanager
def told_by(what: Callable[[], str]) -> Iterator[None]:
    """A command that ends at once says this."""
    before, _state.told = _state.told, what
    try:
        yield
    finally:
        _state.told = before


@contextmanager
def answered_by(answer: Callable[[], object], at_stake: Callable[[], str] = str) -> Iterator[None]:
    """The first signal calls `answer`, between two instructions of the main thread.

    `at_stake` says what is lost if a later one gives up. Outside of a command, where a later one is a
    `KeyboardInterrupt`, handlers are put back in the end; in another thread than the main one nothing is changed.
    """
    if not _state.is_command and threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _state.answer, _state.at_stake, [signal.getsignal(number) for number in SIGNALS]
    if not _state.is_command:
        _state.first = None
        _install()
    _state.answer, _state.at_stake = answer, at_stake
    try:
        yield
    finally:
        _state.answer, _state.at_stake, handlers = before
        if not _state.is_command:
            for number, handler in zip(SIGNALS, handlers, strict=True):
                signal.signal(number, handler)


def put_back() -> None:
    """Let Python answer again, where a library has set handlers below it."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number) or signal.SIG_DFL)


def exit_code() -> int:
    """Of a process that was asked to stop."""
    return 128 + (signal.SIGTERM if _state.first is None else _state.first[0])


def at_end(cleanup: Callable[[], object]) -> None:
    """Have something removed when the process ends, also when it does so at once."""
    atexit.register(cleanup)
    _state.cleanups.append(cleanup)


def is_command() -> bool:
    """Whether this process is a command that answers signals."""
    return _state.is_command


def ask_to_stop(number: int = signal.SIGTERM) -> None:
    """As this signal does, unless one has asked already."""
    if _state.first is None:
        signal.raise_signal(number)


def say(text: str) -> None:
    """On stderr, whoever still reads it, and past its buffer, which may be in use.

    On a terminal it takes the place of a line that is being drawn.
    """
    start = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{start}{printable(text)}\n".encode())


class _State:
    """What the handler knows. Signals belong to the process, and so does this."""

    def __init__(self) -> None:
        self.is_command = False
        self.first: tuple[int, float] | None = None  # its number, and when it came
        self.answer: Callable[[], object] = _end_at_once
        self.told: Callable[[], str] = lambda: "Nothing was under way that had to be saved."
        self.at_stake: Callable[[], str] = str
        self.cleanups: list[Callable[[], object]] = []
        self.terminals: list[int] = []  # what we write to that ends with a terminal


def _install() -> None:
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if number in HANG_UP:
        for fd in _state.terminals:  # to write there is an error from now on, in the middle of a save
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    if _state.first is None:
        _state.first = number, now
        _state.answer()
    elif now - _state.first[1] > REFLEX_S:
        if not _state.is_command:
            raise KeyboardInterrupt
        _end(number, f"Gave up. {_state.at_stake()}".rstrip())


def _end_at_once() -> NoReturn:
    assert _state.first is not None
    _end(_state.first[0], f"Stopped. {_state.told()}")


def _end(number: int, said: str) -> NoReturn:
    """Say it, kill every process that was started here, and end; no thread is waited for."""
    with suppress(Exception):  # where psutil is being imported just now, nothing was started yet
        _kill_children()
    for cleanup in _state.cleanups:
        with suppress(Exception):
            cleanup()
    say(said)
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(128 + number)


def _kill_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()


_state = _State()
