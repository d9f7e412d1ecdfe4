"""Event files in the run folder's `tensorboard/`: `tensorboard --logdir runs`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import Row
from hpt_ray.text import printable


class TensorBoardTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        # A resumed run hides the points of an earlier attempt from `first_step` on.
        purge_step = first_step if first_step > 0 else None
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=purge_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_samples(self, step: int, rows: Sequence[Row]) -> None:
        # As code, since a response may hold any Markdown and HTML.
        for i, row in enumerate(rows):
            lines = [f"{name}: {printable(str(value))}" for name, value in row.items() if value is not None]
            self._writer.add_text(
                f"samples/{i}", textwrap.indent("\n".join(lines), "    ", lambda _: True), step
            )

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        for name, found in values.items():
            self._writer.add_histogram(name, np.asarray(found), step)

    def close(self) -> None:
        self._writer.close()
