"""Where commands print for people."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hpt_ray.text import printable
from hpt_ray.utils import signals


class CommandConsole(Console):
    """A console that no text steers, whoever wrote it, and whose reader may go away.

    A Ctrl-C ends the `tee` of `hpt_ray train | tee log`, too.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """With a sign for every control character that is not the console's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Go on in silence where the command was asked to stop; else this is such a request."""
        if not signals.is_command():
            return super().on_broken_pipe()
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signals.ask_to_stop()

    def _write_buffer(self) -> None:
        """A terminal that was closed may be noticed here before its SIGHUP is."""
        try:
            super()._write_buffer()
        except OSError as error:
            if error.errno != errno.EIO or not signals.is_command():
                raise
            signals.ask_to_stop(signal.SIGHUP)
