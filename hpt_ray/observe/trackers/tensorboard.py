"""Event files in the run folder's `tensorboard/`: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from hpt_ray.observe.run_folder import RunFolder


class TensorBoardTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        # A resumed run hides the points of an earlier attempt from `first_step` on.
        purge_step = first_step if first_step > 0 else None
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=purge_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
