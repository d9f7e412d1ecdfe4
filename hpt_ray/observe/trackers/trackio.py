"""Trackio. Where runs go follows its own settings (`TRACKIO_DIR`, `TRACKIO_PROJECT`, …)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import trackio

from hpt_ray.observe.run_folder import RunFolder


class TrackioTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "hpt_ray"),
            name=folder.root.name,
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
