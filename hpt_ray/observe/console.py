"""Where commands print for people."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from hpt_ray.utils import signals


class CommandConsole(Console):
    """A console whose reader may go away: a Ctrl-C ends the `tee` of `hpt_ray train | tee log`, too."""

    def on_broken_pipe(self) -> None:
        """Go on in silence where the command was asked to stop; else this is such a request."""
        if not signals.is_command():
            return super().on_broken_pipe()
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signals.ask_to_stop()
