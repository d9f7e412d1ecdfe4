"""Prometheus, through the endpoint that Ray's agent on the driver's node has: no port of our own.

What is in metrics.jsonl as `reward/mean` is there as `ray_hpt_ray_reward_mean{run="NAME-TIME"}`; Ray puts `ray_`
in front. A part in `<…>` becomes a label: `eval/<set>/mean` is `ray_hpt_ray_eval_mean{set="math"}`. Values are
gauges; what is counted by kind is a counter, `ray_hpt_ray_rollout_finish_total{reason="length"}`. The
list of names is `METRICS` and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from hpt_ray.observe.metrics import METRICS, Metric
from hpt_ray.observe.run_folder import RunFolder

PREFIX = "hpt_ray_"
COUNTED = {"rollouts", "prompts", "count"}  # units of what is counted by kind
_LABEL = re.compile(r"<(\w+)>")


@dataclass(frozen=True)
class Series:
    """How one row of `METRICS` is named in Prometheus. Example: `Series(METRICS[1]).name` is
    `hpt_ray_weights_version`."""

    metric: Metric

    @property
    def name(self) -> str:
        """Without what Ray adds: `ray_` in front, and `_total` behind a counter."""
        return PREFIX + re.sub(r"\W+", "_", _LABEL.sub("", self.metric.name)).strip("_")

    @property
    def description(self) -> str:
        """What stands beside it in the endpoint. Ray takes ASCII only, and the meanings are not."""
        return f"{self.metric.name} in metrics.jsonl, see docs/metrics.md"

    @property
    def label(self) -> str | None:
        found = _LABEL.search(self.metric.name)
        return found[1] if found else None

    @property
    def is_counter(self) -> bool:
        return self.label is not None and self.metric.unit in COUNTED

    @property
    def exported(self) -> str:
        """The name that a query uses."""
        return f"ray_{self.name}" + ("_total" if self.is_counter else "")

    def labels_of(self, name: str) -> dict[str, str] | None:
        """The labels of a name in metrics.jsonl; None where it is not of this row."""
        found = self._pattern.fullmatch(name)
        return found and found.groupdict()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_LABEL.sub(r"(?P<\1>.+)", self.metric.name))


SERIES = tuple(Series(metric) for metric in METRICS)


def has_endpoint() -> bool:
    """Whether the cluster that this process is in exports metrics."""
    return ray.is_initialized() and any(node["Alive"] and node["MetricsExportPort"] for node in ray.nodes())


class PrometheusTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        if not has_endpoint():
            raise RuntimeError("no node of the Ray cluster exports metrics")
        self._run = {"run": folder.root.name}
        self._instruments: dict[str, Gauge | Counter] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in {"step": float(step), **metrics}.items():
            series, labels = find(name)
            instrument = self._instrument(series)
            if isinstance(instrument, Gauge):
                instrument.set(value, {**self._run, **labels})
            elif value > 0:
                instrument.inc(value, {**self._run, **labels})

    def close(self) -> None:
        """Nothing: the endpoint forgets the values when this process ends."""

    def _instrument(self, series: Series) -> Gauge | Counter:
        if series.name not in self._instruments:
            kind = Counter if series.is_counter else Gauge
            keys = ("run", *filter(None, [series.label]))
            self._instruments[series.name] = kind(series.name, series.description, keys)
        return self._instruments[series.name]


def find(name: str) -> tuple[Series, dict[str, str]]:
    """The series of a name in metrics.jsonl, and its labels. Raises `KeyError` for one that `METRICS` lacks."""
    for series in SERIES:
        labels = series.labels_of(name)
        if labels is not None:
            return series, labels
    raise KeyError(f"{name} is not in METRICS")
