"""The timeline of one step: what each actor did when, and on whom it waited meanwhile.

In: a run's trace.json. Out: spans in seconds from the beginning of the step to that of the next one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from hpt_ray.observe.trace import Span, busy_share, overlap_share, read_step


def timeline(trace: Path, step: int) -> dict[str, Any]:
    """`tracks`: of each actor its spans `[name, begin, end]`, its busy seconds, and `waits`: the seconds in which it
    did nothing while a kind of actors worked, and while `nobody` did. A second may count for more than one kind.

    No tracks where the trace does not hold the step, such as that of an older version.
    """
    spans, begin, end = read_step(trace, step)
    of_actor: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        of_actor[span.actor].append(span)
    workers = {actor: own for actor, own in of_actor.items() if actor != "driver"}
    tracks = []
    for actor, own in of_actor.items():
        track = {
            "actor": actor,
            "spans": [[s.name, *_within(s, begin, end)] for s in own],
            "busy_s": round(busy_share(own, begin, end) * (end - begin), 4),
        }
        tracks.append(track | {"waits": _waits(actor, workers, begin, end) if actor in workers else {}})
    return {"step": step, "seconds": round(end - begin, 4), "tracks": tracks}


def _within(span: Span, begin: float, end: float) -> list[float]:
    return [round(max(span.start_s, begin) - begin, 4), round(min(span.end_s, end) - begin, 4)]


def _waits(actor: str, workers: dict[str, list[Span]], begin: float, end: float) -> dict[str, float]:
    own = workers[actor]
    by_kind: defaultdict[str, list[Span]] = defaultdict(list)
    for other, spans in workers.items():
        if other != actor:
            by_kind[_kind(other)] += spans
    shares = {
        kind: busy_share(spans, begin, end) - overlap_share(own, spans, begin, end)[0]
        for kind, spans in by_kind.items()
    }
    everybody = [span for spans in workers.values() for span in spans]
    shares["nobody"] = 1 - busy_share(everybody, begin, end)
    return {kind: round(share * (end - begin), 4) for kind, share in shares.items() if share > 1e-6}


def _kind(actor: str) -> str:
    """Example: `rollout worker 0` gives `rollout worker`."""
    return re.sub(r"\W*\d+$", "", actor)
