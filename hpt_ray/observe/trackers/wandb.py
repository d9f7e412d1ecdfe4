"""Weights & Biases. Where runs go follows its own settings (`WANDB_MODE`, `WANDB_PROJECT`, …)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import Row


class WandbTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        name = folder.root.name
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hpt_ray"),
            name=name,
            id=name,  # a resumed run goes on in the same place
            resume="allow",
            dir=str(folder.logs),
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),  # its chatter goes to its own log files
        )
        # By our step and not by its own counter, which goes up only: a run may go back to a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def log_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        table = wandb.Table(
            columns=[*rows[0]], data=[[*row.values()] for row in rows], allow_mixed_types=True
        )
        self._run.log({name: table, "step": step})

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        histograms = {name: wandb.Histogram(found) for name, found in values.items()}
        self._run.log({**histograms, "step": step})

    def log_file(self, path: Path) -> None:
        artifact = wandb.Artifact(f"report-{self._run.name}", type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()
