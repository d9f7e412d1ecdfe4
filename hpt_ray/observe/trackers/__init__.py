"""Copies of the metrics in places where people like to look: one record of `TRACKERS` and one small class each.

A tracker is made from `(folder, config, first_step)` and has `log(step, metrics)` and `close()`; what it has of
`log_table`, `log_values` and `log_file` is called, too. Ours are imported only when they are used. TensorBoard
always is, Prometheus wherever the cluster has an endpoint for it. metrics.jsonl is always written by the run folder
and is no tracker.

Each tracker runs on a thread of its own, so a slow or unreachable service never holds up a step. One that
fails is switched off with one warning and counted; it never ends a run.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import pkgutil
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.utils.names import check_name

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 2000  # records that may wait for a slow tracker, about two a step
CLOSE_TIMEOUT_S = 60.0


Row = Mapping[str, str | float | None]


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class FullTracker(Tracker, Protocol):
    """A tracker that takes more than numbers."""

    def log_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Responses with prompt, reward and what else `row_of_sample` has; each row has the same columns.

        `name`: `samples` of training, `eval/<set>` of an evaluation.
        """

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """What is drawn as a histogram, none of them empty."""

    def log_file(self, path: Path) -> None:
        """The report of the run that is done, one file."""


@dataclass(frozen=True, slots=True)
class TrackerKind:
    """One record of `TRACKERS`.

    `make` is called with `(folder, config, first_step)`: a class or a function, or the name of one as
    `module:name`, which is then imported when it is used. `package` is what must be installed for it.
    """

    make: Callable[[RunFolder, Mapping[str, Any], int], Tracker] | str
    doc: str
    package: str | None = None


_HERE = "hpt_ray.observe.trackers"
TRACKERS: dict[str, TrackerKind] = {
    "tensorboard": TrackerKind(
        f"{_HERE}.tensorboard:TensorBoardTracker",
        "event files in `run.dir`/tensorboard; always on",
        "tensorboard",
    ),
    "prometheus": TrackerKind(
        f"{_HERE}.prometheus:PrometheusTracker", "the cluster's endpoint; on where it has one", "ray"
    ),
    "wandb": TrackerKind(f"{_HERE}.wandb:WandbTracker", "Weights & Biases", "wandb"),
    "mlflow": TrackerKind(f"{_HERE}.mlflow:MlflowTracker", "MLflow", "mlflow"),
    "trackio": TrackerKind(f"{_HERE}.trackio:TrackioTracker", "Trackio", "trackio"),
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise a `UserError` for a name that `TRACKERS` does not have, and for one whose package is not installed."""
    kinds = {name: TRACKERS[check_name("observe.trackers", name, TRACKERS)] for name in names}
    for name, kind in kinds.items():
        if kind.package is not None and importlib.util.find_spec(kind.package) is None:
            raise UserError(
                f"`observe.trackers` names {name}, and {kind.package} is not installed: install the extra "
                f'`trackers` (pip install "hpt_ray[trackers]"), or take {name} out.'
            )


class TrackerGroup:
    """All trackers of a run behind one `log`. `failures` names those that were switched off, and why."""

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]]) -> None:
        self._feeds = [_Feed(name, make) for name, make in makers.items()]

    @property
    def failures(self) -> dict[str, str]:
        return {feed.name: feed.failure for feed in self._feeds if feed.failure is not None}

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hand the finite numbers of one step to every tracker that still works. Returns at once."""
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        self._hand("log", step, numbers)

    def log_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Hand responses, as people read them, to the trackers that take them."""
        if rows:
            self._hand("log_table", step, name, rows)

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """Hand the values behind a histogram to the trackers that draw one."""
        if some := {name: found for name, found in values.items() if found}:
            self._hand("log_values", step, some)

    def log_file(self, path: Path) -> None:
        """Hand a file to the trackers that keep files."""
        self._hand("log_file", path)

    def _hand(self, method: str, *content: Any) -> None:
        for feed in self._feeds:
            feed.put((method, content))

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Let every tracker finish; after `timeout_s` seconds in all, those not done are given up."""
        deadline = time.monotonic() + timeout_s
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            feed.join(max(0.0, deadline - time.monotonic()), timeout_s)


def start_trackers(
    names: Sequence[str], folder: RunFolder, config: Mapping[str, Any], *, first_step: int = 0
) -> TrackerGroup:
    """Start the named trackers and those that are always there. `first_step`: where a resumed run goes on.

    Raises `UserError` for an unknown name and for a tracker that is not installed.
    """

    def maker(make: Callable[..., Tracker]) -> Callable[[], Tracker]:
        return lambda: make(folder, config, first_step)

    return TrackerGroup({name: maker(_load(name)) for name in dict.fromkeys([*_always(), *names])})


def _always() -> list[str]:
    from hpt_ray.observe.trackers.prometheus import has_endpoint

    return ["tensorboard", "prometheus"] if has_endpoint() else ["tensorboard"]


def _load(name: str) -> Callable[..., Tracker]:
    check_trackers([name])
    make = TRACKERS[name].make
    return pkgutil.resolve_name(make) if isinstance(make, str) else make


class _Feed:
    """One tracker on its own thread, fed by a bounded queue."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self.failure: str | None = None
        self._queue: queue.Queue[tuple[str, tuple] | None] = queue.Queue(QUEUE_LIMIT)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(make,), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.put(None)

    def join(self, timeout_s: float, limit_s: float) -> None:
        if self.failure is None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._fail(f"it did not finish within {limit_s:g} s")

    def put(self, item: tuple[str, tuple] | None) -> None:
        """`(method, its arguments)`; None: it was the last."""
        if self.failure is None:
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                self._fail(f"it does not keep up: {QUEUE_LIMIT} records are waiting")

    def _run(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            while (item := self._queue.get()) is not None and self.failure is None:
                method, content = item
                if (take := getattr(tracker, method, None)) is not None:
                    take(*content)
            tracker.close()
        except Exception as error:  # whatever a foreign client raises, the run goes on without it
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = reason
        logger.warning("Tracker %s is switched off, the run goes on without it: %s", self.name, reason)
