"""Where the run is: a line for each finished step, and one that says what goes on now.

On a terminal the last line is alive: the step under way, what it does and the time left. Finished steps stay above
it. Elsewhere (a file, CI, `ray job logs`, a notebook) there are the lines of finished steps only, and a sign of life
where a step is long. Of fast steps one every two seconds has its line; the first, the last, one with an evaluation and
one in which something failed always do, and every step is in metrics.jsonl. Numbers come from the driver; nothing
here measures training.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from hpt_ray.observe.console import CommandConsole
from hpt_ray.observe.step_line import (
    BAD,
    ODD,
    Part,
    in_lines,
    in_one_line,
    short_time,
    step_part,
    step_parts,
)
from hpt_ray.text import printable

WINDOW = 20  # steps whose mean time predicts the time left
STEP_LINE_S = 2.0  # between two lines of steps: every step that takes longer has its own
SIGN_OF_LIFE_S = 30.0
NO_STEP = ("starting", "recover")  # phases that are no part of a step
STEP = ("rollout", "learn", "sync")  # those with which one begins


class Pace:
    """How long the rest will take, from the last steps.

    Start-up and recoveries do not count, nor does the first step once there is another: it warms everything up.
    Evaluations and checkpoints take what the last one took, as often as they are still due.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic):
        self.every: Mapping[
            str, int
        ] = {}  # the metric of what recurs → its steps; 0: after the last one only
        self._total, self._clock = total, clock
        self._since: float | None = None
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._num_timed = 0
        self._recurring: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        if phase.startswith(NO_STEP):
            self._since = None
        elif self._since is None:
            self._since = self._clock()

    @property
    def step_s(self) -> float:
        """How long the step under way has taken so far."""
        return 0.0 if self._since is None else self._clock() - self._since

    def step_done(self, step: int, metrics: Mapping[str, Any]) -> None:
        recurring = {name: metrics[name] for name in self.every if metrics.get(name)}
        self._recurring |= recurring
        began, self._since = self._since, self._clock()
        if began is None or step == 0:
            return
        if self._num_timed == 1:
            self._times.clear()
        self._num_timed += 1
        self._times.append(max(0.0, self._since - began - sum(recurring.values())))

    def left(self, step: int) -> float | None:
        """Seconds after `step`; None before a step was timed."""
        if not self._times:
            return None
        rest = sum(
            seconds * self._num_due(self.every[name], step) for name, seconds in self._recurring.items()
        )
        return rest + sum(self._times) / len(self._times) * (self._total - step)

    def _num_due(self, every: int, step: int) -> int:
        due = self._total // every - step // every if every else 0
        return due + (step < self._total and (every == 0 or self._total % every != 0))


class Progress:
    """Shows the lines while a run goes on. Use as a context manager."""

    def __init__(
        self,
        total: int,
        *,
        first_step: int = 0,
        console: Console | None = None,
        step_line_s: float = STEP_LINE_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.console = console or CommandConsole()
        self._total, self._step, self._phase = total, first_step, "starting"
        self._in_step = False  # one after `_step` is under way
        self._clock, self._pace = clock, Pace(total, clock)
        self._step_line_s = step_line_s
        self._showed_step_s = self._said_s = float("-inf")  # when there was a line of a step, and any line
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_interactive and not self.console.is_jupyter:
            self._live = Live(
                get_renderable=self._under_way, console=self.console, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def expect(self, every: Mapping[str, int]) -> None:
        """What recurs every so many steps, by the metric that says how long it took; for the time left."""
        self._pace.every = every

    def phase(self, name: str) -> None:
        """Say what goes on now: "rollout", "learn", "sync", "evaluate", "save"."""
        self._phase = name
        self._in_step |= name in STEP
        self._pace.enter(name)
        if self._live is None and self._clock() - self._said_s >= SIGN_OF_LIFE_S:
            self._print(self._under_way())

    def finish_step(self, step: int, metrics: Mapping[str, Any], *, keep: bool = False) -> None:
        """Take in the numbers of a finished step, and show them where it is time to; `keep`: in any case."""
        self._step, self._in_step = step, False
        self._pace.step_done(step, metrics)
        if step == 0:
            return
        parts = step_parts(step, self._total, metrics, self._pace.left(step))
        keep |= step == self._total or any(part.style == BAD for part in parts)
        if keep or self._clock() - self._showed_step_s >= self._step_line_s:
            self._showed_step_s = self._clock()
            self._print(in_one_line(parts, self._width))

    def show_lines(self, parts: list[Part]) -> None:
        """Something of the last step that one waits for, such as an evaluation."""
        self._print(in_lines(parts, self._width))

    def show(self, renderable: RenderableType) -> None:
        """Print something above the line, e.g. a table of samples. A text is shown as it is."""
        self.console.print(Text(printable(renderable)) if isinstance(renderable, str) else renderable)

    def warn(self, text: str) -> None:
        """As `show`, so that it is seen."""
        self.console.print(Text(printable(text), ODD))

    @property
    def _width(self) -> int | None:
        """Columns of a line; in a file lines have no end."""
        return self.console.width - 1 if self.console.is_terminal else None

    def _print(self, line: Text) -> None:
        self._said_s = self._clock()
        self.console.print(line, soft_wrap=self._width is None)

    def _under_way(self) -> Text:
        parts = [Part(self._phase)]
        if not self._phase.startswith(NO_STEP):
            step = step_part(self._step + self._in_step, self._total)
            parts = [step, *parts, Part(short_time(self._pace.step_s), 1)]
        left = self._pace.left(self._step)
        if left is not None:
            parts.append(Part(f"{short_time(max(0.0, left - self._pace.step_s))} left", 1))
        line = in_one_line(parts, self._width)
        line.no_wrap = True
        return line
