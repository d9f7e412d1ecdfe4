"""Event files in `runs/tensorboard/NAME-TIME`: `tensorboard --logdir runs` shows each run once, `latest` not again."""

from __future__ import annotations

import stat
import textwrap
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import Row
from hpt_ray.text import printable
from hpt_ray.utils.names import dotted

_of_threads = threading.excepthook


def _not_of_its_thread(failed: threading.ExceptHookArgs) -> None:
    """What ends TensorBoard's own thread is raised by the next call too, and said there once."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        _of_threads(failed)


threading.excepthook = _not_of_its_thread

PLAIN = (bool, int, float, str)  # what a hyperparameter may be


class TensorBoardTracker:
    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int) -> None:
        # A resumed run hides the points of an earlier attempt from `first_step` on.
        purge_step = first_step if first_step > 0 else None
        with suppress(FileExistsError):  # open to whoever may make runs
            folder.tensorboard.parent.mkdir()
            folder.tensorboard.parent.chmod(stat.S_IMODE(folder.root.parent.stat().st_mode))
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=purge_step)
        if first_step == 0:
            keys = {
                name: value if isinstance(value, PLAIN) else str(value)
                for name, value in dotted(config).items()
            }
            for summary in hparams(keys, {"reward/mean": 0.0})[:2]:  # without one that says it is done
                self._writer._get_file_writer().add_summary(summary)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        # As code, since a response may hold any Markdown and HTML.
        for i, row in enumerate(rows):
            lines = [f"{name}: {printable(str(value))}" for name, value in row.items() if value is not None]
            self._writer.add_text(
                f"{name}/{i}", textwrap.indent("\n".join(lines), "    ", lambda _: True), step
            )

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        for name, found in values.items():
            self._writer.add_histogram(name, np.asarray(found), step)

    def close(self) -> None:
        self._writer.close()
