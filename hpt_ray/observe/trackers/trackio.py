"""Trackio. Where runs go follows its own settings (`TRACKIO_DIR`, `TRACKIO_PROJECT`, …)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import trackio

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import Row
from hpt_ray.utils.names import dotted


class TrackioTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "hpt_ray"),
            name=folder.root.name,
            resume="allow",
            config=dotted(config),
            embed=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def log_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        self._run.log({name: trackio.Table(dataframe=pandas.DataFrame(rows))}, step=step)

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        self._run.log({name: trackio.Histogram(found) for name, found in values.items()}, step=step)

    def log_file(self, path: Path) -> None:
        artifact = trackio.Artifact(f"report-{self._run.name}", type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()
