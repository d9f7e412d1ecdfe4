"""A run is a folder: where each file of a run lies, and the two files written line by line and at the end.

    runs/NAME-YYYYmmdd-HHMMSS/
      config.yaml  data_card.json  metrics.jsonl  summary.json  trace.json
      rollouts/  checkpoints/  tensorboard/  logs/
    runs/latest -> the folder that was made last

Everything a person looks at is drawn from here. What goes into checkpoints is up to `checkpoint/`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hpt_ray.config import renamed
from hpt_ray.config.checks import naming
from hpt_ray.errors import UserError
from hpt_ray.utils.names import nearest_path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder. Example: `RunFolder.create("runs", "demo").metrics` is `runs/demo-…/metrics.jsonl`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def data_card(self) -> Path:
        return self.root / "data_card.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def trace(self) -> Path:
        return self.root / "trace.json"

    @property
    def prompt_history(self) -> Path:
        return renamed.existing(self.root / "prompt_history.jsonl")

    @property
    def rollouts(self) -> Path:
        return self.root / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @classmethod
    def create(cls, directory: str | os.PathLike[str], name: str) -> RunFolder:
        """Make a new folder for run `name` and point `latest` to it. Raises `UserError` where it cannot."""
        if problems := [*naming(name)]:
            raise UserError(problems[0])
        parent = Path(directory)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = cls(_make_unique(parent, f"{name}-{datetime.now():%Y%m%d-%H%M%S}"))
            folder._make_parts()
            folder.point_latest()
        except OSError as error:
            raise UserError(f"`run.dir` ({directory}): cannot make a run folder there: {error}.") from error
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The existing run folder at `path`, to be continued. Raises `UserError` where there is none."""
        check_run_folder(path)
        folder = cls(Path(path).resolve())
        folder._make_parts()
        folder.point_latest()
        return folder

    @classmethod
    def newest(cls, directory: str | os.PathLike[str], name: str) -> RunFolder | None:
        """The newest run of this name that has a checkpoint; None where there is none."""
        checkpoints = Path(directory).glob(f"{name}-*/checkpoints/step-*")
        newest = newest_name({path.parents[1].name for path in checkpoints}, name)
        return cls(Path(directory, newest)) if newest else None

    def append_metrics(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Add one step to metrics.jsonl and hand back what was written.

        Values that are NaN or infinite become null, and `observe/non_finite` counts them.
        """
        written, num_non_finite = _finite(line)
        written["observe/non_finite"] = num_non_finite
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(written, allow_nan=False) + "\n")
        return written

    def amend_metrics(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Add values to the last line of metrics.jsonl, as `append_metrics` writes them; hands back these."""
        written, num_non_finite = _finite(line)
        *before, last = self.read_metrics()
        last |= written
        last["observe/non_finite"] += num_non_finite
        self._write_metrics([*before, last])
        return written

    def _write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        write_atomic(self.metrics, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl. A last line left unfinished by a killed run is not one."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        return [renamed.metrics(json.loads(line)) for line in lines if line]

    def cut_after(self, step: int) -> int:
        """Forget what came after `step`, before a run goes on from there; each step then appears once.

        Returns how many lines of metrics.jsonl were cut. Dumps of later rollouts are removed too.
        """
        lines = self.read_metrics()
        kept = [line for line in lines if line["step"] <= step]
        self._write_metrics(kept)
        for path in self.rollouts.glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        return len(lines) - len(kept)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomic(self.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def write_data_card(self, card: Mapping[str, Any]) -> None:
        """What the files of the run hold, and what was dropped: a `DataCard` as a dict."""
        write_atomic(self.data_card, json.dumps(card, indent=2, ensure_ascii=False) + "\n")

    def point_latest(self) -> None:
        """Let `latest` beside this folder name it. Replaced at once, so it is never missing in between."""
        link = self.root.parent / "latest"
        if link.exists() and not link.is_symlink():
            raise UserError(f"{link}: exists and is no link, but runs are linked from there. Move it away.")
        aside = self.root.parent / f".latest-{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(self.root.name, target_is_directory=True)
        aside.replace(link)

    def _make_parts(self) -> None:
        for part in (self.rollouts, self.checkpoints, self.tensorboard, self.logs):
            part.mkdir(exist_ok=True)


def check_run_folder(path: str | os.PathLike[str]) -> None:
    """Raises `UserError` where `resume` names what is no run folder, with the one that is most likely meant."""
    folder = Path(path)
    if (folder / "config.yaml").is_file():
        return
    if folder.is_dir():
        problem, near = "not a run folder (no config.yaml in it)", None
        if (inside := folder.resolve().parent.parent / "config.yaml").is_file():
            near = inside.parent  # a checkpoint of it
        elif (folder / "latest").is_dir():
            near = folder / "latest"
    else:
        problem, near = "no such folder", nearest_path(folder, holding="config.yaml")
    hint = f" Did you mean {near}?" if near else " Name a run folder, runs/NAME-TIME, or write resume=auto."
    raise UserError(f"resume={path}: {problem}.{hint}")


def check_run_dir(directory: str | os.PathLike[str]) -> bool:
    """Whether run folders can be made there; False where nothing of the path is on this machine.

    Raises `UserError` where they cannot. Nothing is made.
    """
    if str(directory).startswith("~"):  # the shell leaves it as it is after `run.dir=`
        raise UserError(
            f"`run.dir` ({directory}): write the whole path, such as {Path(directory).expanduser()}."
        )
    wanted = Path(directory).absolute()
    there = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"`run.dir` ({directory}): {there} is a file. Name a folder for runs.")
    if there == Path(there.anchor) and there != wanted:
        return False
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"`run.dir` ({directory}): you may not write in {there}. Name another folder for runs."
        )
    return True


def _finite(line: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The line with plain numbers, and null for those that are NaN or infinite; how many these were."""
    written = {
        name: value.item() if hasattr(value, "item") else value  # numpy and torch scalars
        for name, value in line.items()
    }
    bad = [name for name, value in written.items() if isinstance(value, float) and not math.isfinite(value)]
    return written | dict.fromkeys(bad), len(bad)


def newest_name(folders: Iterable[str], run: str) -> str | None:
    """Which of the folder names is the newest of the runs called `run`; None where there is none.

    Example: `newest_name(["a-20250101-000000", "a-20250101-000000-2"], "a") == "a-20250101-000000-2"`.
    """
    pattern = re.compile(re.escape(run) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    matches = filter(None, map(pattern.fullmatch, folders))
    newest = max(matches, key=lambda match: (match[1], int(match[2] or 1)), default=None)
    return newest and newest[0]


def write_atomic(path: Path, text: str) -> None:
    """Replace the whole file or leave it as it was."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _make_unique(parent: Path, stem: str) -> Path:
    number = 1
    while True:
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
