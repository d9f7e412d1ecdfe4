"""One live line that says where the run is.

On a terminal the line is redrawn in place; elsewhere (CI, `ray job logs`) a plain line is printed when
something changed, at most every `interval_s` seconds, and after the last step. `progress_line` makes the
text; `Progress` shows it and prints tables above it. Numbers come from the driver; nothing here measures
training.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

WINDOW = 20  # steps whose mean time predicts the time left


@dataclass(frozen=True, slots=True)
class ProgressState:
    """What the line says. None where it is not known yet."""

    total: int
    phase: str = "starting"
    step: int = 0
    reward: float | None = None
    demo_ratio: float | None = None  # offline ratio by weight
    tokens_per_s: float | None = None
    seconds_left: float | None = None


def progress_line(state: ProgressState, width: int = 80) -> str:
    """The line in at most `width` columns; whole parts that do not fit are left out from the right."""
    parts = [f"step {state.step}/{state.total}", f"{state.phase:<9}"]
    if state.reward is not None:
        parts.append(f"reward {state.reward:.3f}")
    if state.demo_ratio is not None:
        parts.append(f"demos {state.demo_ratio:.0%}")
    if state.tokens_per_s is not None:
        parts.append(f"{short_count(state.tokens_per_s)} tok/s")
    if state.seconds_left is not None:
        parts.append(f"{short_time(state.seconds_left)} left")
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 3 + len(part) > width:
            break
        line += f" · {part}"
    return line[:width].rstrip()


class Progress:
    """Shows the line while a run goes on. Use as a context manager."""

    def __init__(
        self, total: int, *, first_step: int = 0, console: Console | None = None, interval_s: float = 10.0
    ):
        self.console = console or Console()
        self.state = ProgressState(total=total, step=first_step)
        self._interval_s = interval_s
        self._last_plain_s = float("-inf")
        self._step_times: deque[float] = deque(maxlen=WINDOW)
        self._step_started_s = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(self._text(), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str) -> None:
        """Say what goes on now: "rollout", "learn", "sync", "evaluate", "save"."""
        self.state = replace(self.state, phase=name)
        self._refresh()

    def finish_step(
        self, step: int, *, reward: float | None, demo_ratio: float | None, tokens_per_s: float | None
    ) -> None:
        """Take in the numbers of a finished step and predict the time left from the last steps."""
        now = time.monotonic()
        self._step_times.append(now - self._step_started_s)
        self._step_started_s = now
        mean_s = sum(self._step_times) / len(self._step_times)
        self.state = replace(
            self.state,
            step=step,
            reward=reward,
            demo_ratio=demo_ratio,
            tokens_per_s=tokens_per_s,
            seconds_left=mean_s * (self.state.total - step),
        )
        self._refresh(force=step == self.state.total)

    def show(self, renderable: RenderableType) -> None:
        """Print something above the line, e.g. a table of samples. A text is shown as it is."""
        self.console.print(Text(renderable) if isinstance(renderable, str) else renderable)

    def _refresh(self, *, force: bool = False) -> None:
        if self._live is not None:
            self._live.update(self._text())
            return
        now = time.monotonic()
        if force or now - self._last_plain_s >= self._interval_s:
            self._last_plain_s = now
            self.console.print(self._text(), soft_wrap=True)

    def _text(self) -> Text:
        return Text(progress_line(self.state, self.console.width - 1), no_wrap=True)


def short_count(number: float) -> str:
    """Four or five characters: 950, 1.2k, 34k, 5.6M."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale * 0.9995:
            value = number / scale
            return f"{value:.1f}{letter}" if value < 9.95 else f"{value:.0f}{letter}"
    return f"{number:.0f}"


def short_time(seconds: float) -> str:
    """42s, 3m05s, 2h07m, 3d04h."""
    whole = max(0, round(seconds))
    for unit, small, letters in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= unit:
            return f"{whole // unit}{letters[0]}{whole % unit // small:02d}{letters[1]}"
    return f"{whole}s"
