"""The timeline of a run: what every actor did when, in trace.json, and what that says about each step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hpt_ray.observe.trace import Span, SpanRecord, TraceWriter, busy_share, overlap_share

# What an actor does by itself; sending and receiving weights is waiting for the other side.
ROLLOUT_WORK = ("generate",)
LEARNER_WORK = ("backward", "step", "score")


class Timeline:
    """Writes trace.json. `on_phase` hears what the driver turns to."""

    def __init__(self, path: Path, on_phase: Callable[[str], None]):
        self._writer = TraceWriter(path)
        self._on_phase = on_phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the driver's own work."""
        self._on_phase(name)
        begin = time.time()
        try:
            yield
        finally:
            self._writer.add([Span(name, "driver", begin, time.time())])

    def add_step(
        self, records: Iterable[Mapping[str, Sequence[SpanRecord]]], begin_s: float, end_s: float
    ) -> dict[str, float | None]:
        """Write what actors (by name) noted down; the shares of the step from `begin_s` they were busy for.

        The overlap is the share of the step in which a rollout worker and a learner rank were busy at the
        same time; the bubble is that in which none was.
        """
        spans = [
            Span(name, actor, start, end)
            for by_actor in records
            for actor, noted in by_actor.items()
            for name, start, end in noted
        ]
        self._writer.add(spans)
        rollout = [span for span in spans if span.name in ROLLOUT_WORK]
        learner = [span for span in spans if span.name in LEARNER_WORK]
        overlap, bubble = overlap_share(rollout, learner, begin_s, end_s)
        return {
            "rollout/busy_share": _mean_share(rollout, begin_s, end_s),
            "learner/busy_share": _mean_share(learner, begin_s, end_s),
            "time/overlap_share": overlap,
            "time/bubble_share": bubble,
        }

    def close(self) -> None:
        self._writer.close()


def _mean_share(spans: Iterable[Span], begin_s: float, end_s: float) -> float | None:
    by_actor: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_actor[span.actor].append(span)
    shares = [busy_share(of_actor, begin_s, end_s) for of_actor in by_actor.values()]
    return float(np.mean(shares)) if shares else None
