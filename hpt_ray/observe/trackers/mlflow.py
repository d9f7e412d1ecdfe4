"""MLflow. Where runs go follows its own settings (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, …)."""

from __future__ import annotations

import os
import posixpath
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import Row
from hpt_ray.utils.names import dotted

MAX_PARAMS = 100  # MLflow takes this many in one call
MAX_PARAM_LENGTH = 6000


def fitting(name: str) -> str:
    """A name as MLflow takes it, which refuses all of a step's metrics for one that it does not."""
    return posixpath.normpath(re.sub(r"[^\w./ -]", "_", name))


class MlflowTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        self._client = MlflowClient()
        self._run_id = self._find_or_create(folder.root.name).info.run_id
        if first_step == 0:
            params = [
                Param(fitting(name), str(value)[:MAX_PARAM_LENGTH]) for name, value in dotted(config).items()
            ]
            for start in range(0, len(params), MAX_PARAMS):
                self._client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id,
            metrics=[Metric(fitting(name), value, now_ms, step) for name, value in metrics.items()],
        )

    def log_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        content = {"step": [step] * len(rows), **columns}
        self._client.log_table(self._run_id, content, f"{fitting(name)}.json")

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """MLflow draws no histograms: a tenth, the middle and nine tenths of the values."""
        self.log(
            step,
            {
                f"{name}/p{percent}": float(np.percentile(found, percent))
                for name, found in values.items()
                for percent in (10, 50, 90)
            },
        )

    def log_file(self, path: Path) -> None:
        self._client.log_artifact(self._run_id, str(path), "report")

    def close(self) -> None:
        self._client.set_terminated(self._run_id)

    def _find_or_create(self, name: str) -> Run:
        """A resumed run goes on in the MLflow run of the same name."""
        experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "hpt_ray")
        experiment = self._client.get_experiment_by_name(experiment_name)
        if experiment is None:
            experiment_id = self._client.create_experiment(experiment_name)
        else:
            experiment_id = experiment.experiment_id
        found = self._client.search_runs([experiment_id], f"attributes.run_name = '{name}'", max_results=1)
        return found[0] if found else self._client.create_run(experiment_id, run_name=name)
