"""Jobs one after another or several at a time, with one progress line, and a journal of what came of them.

A job that fails is written down and the others go on. `journal.jsonl` has one line per job that ended; it is
for people and for the report's list of failures. What is done is never read from it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.text import Text

from hpt_ray.observe.step_line import short_time
from hpt_ray.tools.suite.jobs import Job, Launcher, Outcome

NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Journal:
    """What came of the jobs, over all calls."""

    path: Path

    def add(self, job: str, outcome: Outcome) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"time": now, "job": job, "seconds": round(outcome.seconds, 1), "error": outcome.error}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def last_errors(self) -> dict[str, str]:
        """The error that each job ended with the last time it was tried; those that ended well are left out."""
        last = {line["job"]: line["error"] for line in self._lines()}
        return {job: error for job, error in last.items() if error}

    def num_failures(self) -> int:
        """Over all tries of all jobs."""
        return sum(bool(line["error"]) for line in self._lines())

    def _lines(self) -> list[dict]:
        if not self.path.is_file():
            return []
        return [json.loads(x) for x in self.path.read_text(encoding="utf-8").split("\n")[:-1] if x]


@dataclass
class Queue:
    """Carries jobs out; shows where it is. `total`: how many jobs there will be, as far as that is known."""

    launcher: Launcher
    journal: Journal
    console: Console
    parallel: int
    timeout_s: float
    total: int
    _running: list[str] = field(default_factory=list)
    _ended: list[Outcome] = field(default_factory=list)

    async def run(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """The outcome of every job, by its id. What is under way already has the first slots."""
        slots = asyncio.Semaphore(self.parallel)
        outcomes: dict[str, Outcome] = {}

        async def one(job: Job) -> None:
            async with slots:
                self._running.append(job.id)
                status.update(self._line())
                try:
                    outcomes[job.id] = outcome = await self.launcher.run(job, self.timeout_s)
                finally:
                    self._running.remove(job.id)
                self._ended.append(outcome)
                self.journal.add(job.id, outcome)
                if outcome.error:
                    self.console.print(Text(f"{job.id} failed: {outcome.error}"), soft_wrap=True)
                status.update(self._line())
                if not self.console.is_terminal:
                    self.console.print(self._line(), soft_wrap=True)

        with self.console.status(self._line()) as status:  # one live line; nothing where there is no terminal
            try:
                async with asyncio.TaskGroup() as group:
                    for job in sorted(jobs, key=self.launcher.is_under_way, reverse=True):
                        group.create_task(one(job))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
        return outcomes

    def _line(self) -> Text:
        num_ended, num_failed = len(self._ended), sum(bool(outcome.error) for outcome in self._ended)
        parts = [f"jobs {num_ended}/{self.total}"]
        if self._running:
            more = len(self._running) - NAMES_SHOWN
            parts.append(", ".join(self._running[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else ""))
        if num_failed:
            parts.append(f"{num_failed} failed")
        if self._ended:
            mean_s = fmean(outcome.seconds for outcome in self._ended)
            parts.append(f"about {short_time(mean_s * (self.total - num_ended) / self.parallel)} left")
        return Text(" · ".join([*parts, time.strftime("%H:%M")]), no_wrap=True)
