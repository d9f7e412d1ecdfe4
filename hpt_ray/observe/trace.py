"""Where the time of a run goes: spans of work in the trace format of Chrome and Perfetto.

Open trace.json in https://ui.perfetto.dev. Each actor is one track. The file is a whole JSON list after each
write, so a killed run leaves one that opens; a resumed run goes on with it. Times are seconds of the wall
clock (`time.time()`), the one clock that actors on one machine share. `Timeline` is the driver's: it writes what
every actor did, and says what that means for the step.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpt_ray.observe.growing_file import GrowingFile

_END = b"\n]\n"


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work. Example: `Span("rollout", "rollout worker 0", 10.0, 12.5)` took 2.5 s."""

    name: str
    actor: str
    start_s: float
    end_s: float
    step: int | None = None  # of the span with which the driver begins a step


SpanRecord = tuple[str, float, float]  # name, start and end: what an actor itself notes down
JOIN_S = 0.002  # work of one name that goes on after so short a pause is one span


class SpanLog:
    """What one actor did since somebody last asked. Example: `log.add("step", 10.0, 12.5)`.

    One thread may add while another drains.
    """

    def __init__(self) -> None:
        self._spans: list[SpanRecord] = []

    def add(self, name: str, start_s: float, end_s: float) -> None:
        self._spans.append((name, start_s, end_s))

    def extend(self, name: str, start_s: float, end_s: float) -> None:
        """As `add`, but work that goes on where the last span ended makes that span longer."""
        spans = self._spans
        if spans and spans[-1][0] == name and start_s - spans[-1][2] <= JOIN_S:
            spans[-1] = (name, spans[-1][1], end_s)
        else:
            spans.append((name, start_s, end_s))

    def drain(self) -> list[SpanRecord]:
        spans, self._spans = self._spans, []
        return spans


class TraceWriter:
    """Appends spans to one trace file."""

    def __init__(self, path: Path) -> None:
        events = _whole_events(path)
        self._tracks: dict[str, int] = {
            event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"
        }
        text = ",\n".join(json.dumps(event) for event in events or [_process_event()])
        aside = path.with_name(f".{path.name}.partial")
        aside.write_bytes(b"[\n" + text.encode() + _END)
        aside.replace(path)
        self._file = GrowingFile(path, end=_END)

    def add(self, spans: Iterable[Span]) -> None:
        """Write `spans` out at once; the closing bracket moves along in the same write."""
        events: list[dict[str, Any]] = []
        for span in spans:
            if span.actor not in self._tracks:
                self._tracks[span.actor] = len(self._tracks) + 1
                events.append(_track_event(span.actor, self._tracks[span.actor]))
            events.append(_span_event(span, self._tracks[span.actor]))
        if not events:
            return
        lines = "".join(",\n" + json.dumps(event) for event in events)
        self._file.add(lines.encode())


def read_trace(path: Path) -> list[Span]:
    """The spans of a trace file, in the order they were written."""
    return _spans(_whole_events(path))


def read_step(path: Path, step: int) -> tuple[list[Span], float, float]:
    """What actors did from the beginning of a step to that of the next, and both times; no spans where it is not there.

    Of a step that was done twice, the last time. Only the part of the file around it is parsed.
    """
    content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    begin, before, after = (json.dumps({"step": step + i}) for i in (0, -1, 1))
    at = content.rfind(begin)
    if at < 0:
        return [], 0.0, 0.0
    first = max(0, content.rfind(before, 0, at))
    last = content.find("\n", found) if (found := content.find(after, at)) >= 0 else len(content)
    tracks = re.findall(r'^\{"name": "thread_name".*$', content, re.MULTILINE)
    spans = _spans(_events([*tracks, *content[first:last].splitlines()[1:]]))
    begins = {span.step: span.start_s for span in spans if span.step is not None}
    begin_s = begins[step]
    end_s = begins.get(step + 1) or max(span.end_s for span in spans)
    return [span for span in spans if span.end_s > begin_s and span.start_s < end_s], begin_s, end_s


def _spans(events: Sequence[Mapping[str, Any]]) -> list[Span]:
    actors = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    return [
        Span(
            event["name"],
            actors[event["tid"]],
            event["ts"] / 1e6,
            (event["ts"] + event["dur"]) / 1e6,
            event.get("args", {}).get("step"),
        )
        for event in events
        if event["ph"] == "X"
    ]


def busy_share(spans: Sequence[Span], start_s: float, end_s: float) -> float:
    """Share of the time from `start_s` to `end_s` that `spans` cover; overlaps count once."""
    if end_s <= start_s:
        return 0.0
    busy_s, covered_to_s = 0.0, start_s
    for span in sorted(spans, key=lambda span: span.start_s):
        begin, end = max(span.start_s, covered_to_s), min(span.end_s, end_s)
        if end > begin:
            busy_s += end - begin
            covered_to_s = end
    return busy_s / (end_s - start_s)


def overlap_share(
    spans: Sequence[Span], others: Sequence[Span], start_s: float, end_s: float
) -> tuple[float, float]:
    """Shares of the time from `start_s` to `end_s` that both cover, and that neither does (the bubble)."""
    one, other = busy_share(spans, start_s, end_s), busy_share(others, start_s, end_s)
    either = busy_share([*spans, *others], start_s, end_s)
    return max(0.0, one + other - either), max(0.0, 1.0 - either)


def _whole_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file, one a line; a line that a crash of the machine left torn is passed over."""
    return _events(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else []


def _events(lines: Iterable[str]) -> list[dict[str, Any]]:
    events = []
    for line in lines:
        text = line.rstrip(",")
        if text.startswith("{") and text.endswith("}"):
            events.append(json.loads(text))
    return events


def _process_event() -> dict[str, Any]:
    return {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "hpt_ray"}}


def _track_event(actor: str, track: int) -> dict[str, Any]:
    return {"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": actor}}


def _span_event(span: Span, track: int) -> dict[str, Any]:
    start_us, end_us = round(span.start_s * 1e6), round(span.end_s * 1e6)
    event = {"name": span.name, "ph": "X", "pid": 1, "tid": track, "ts": start_us, "dur": end_us - start_us}
    return event if span.step is None else event | {"args": {"step": span.step}}


# What an actor does by itself; sending and receiving weights is waiting for the other side.
ROLLOUT_WORK = ("generate",)
LEARNER_WORK = ("backward", "step", "score")


class Timeline:
    """Writes trace.json. `on_phase` hears what the driver turns to."""

    def __init__(self, path: Path, on_phase: Callable[[str], None]):
        self._writer = TraceWriter(path)
        self._on_phase = on_phase

    @contextmanager
    def phase(self, name: str, step: int | None = None) -> Iterator[None]:
        """A part of the driver's own work. `step`: which it begins."""
        self._on_phase(name)
        begin = time.time()
        try:
            yield
        finally:
            self._writer.add([Span(name, "driver", begin, time.time(), step)])

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


def _mean_share(spans: Iterable[Span], begin_s: float, end_s: float) -> float | None:
    by_actor: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_actor[span.actor].append(span)
    shares = [busy_share(of_actor, begin_s, end_s) for of_actor in by_actor.values()]
    return float(np.mean(shares)) if shares else None
