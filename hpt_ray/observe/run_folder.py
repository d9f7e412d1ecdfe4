"""A run is a folder: where each file of a run lies, and the two files written line by line and at the end.

    runs/NAME-YYYYmmdd-HHMMSS/
      config.yaml  data_card.json  metrics.jsonl  summary.json  trace.json
      rollouts/  checkpoints/  logs/
    runs/latest -> the folder that was made last
    runs/tensorboard/NAME-YYYYmmdd-HHMMSS/

The time is UTC. It never goes back: where the clock does, the time of the newest run stays and a number follows it,
so names are in the order in which runs were made. Everything a person looks at is drawn from here. What goes into
checkpoints is up to `checkpoint/`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hpt_ray.config import renamed
from hpt_ray.config.checks import naming
from hpt_ray.errors import UserError
from hpt_ray.observe.growing_file import GrowingFile
from hpt_ray.text import storable
from hpt_ray.utils.names import nearest_path

MODE = 0o755  # of run folders: others may look, whatever the umask says


class Part:
    """A file or a folder in the folder of a run."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, run: RunFolder, kind: type) -> Path:
        return run.root / self._name


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. Example: `RunFolder.create("runs", "demo").metrics` is `runs/demo-…/metrics.jsonl`."""

    root: Path

    config = Part("config.yaml")
    data_card = Part("data_card.json")
    metrics = Part("metrics.jsonl")
    summary = Part("summary.json")
    plan = Part("plan.json")  # what `memory/…` of metrics.jsonl was planned to be at most
    trace = Part("trace.json")
    rollouts = Part("rollouts")
    checkpoints = Part("checkpoints")
    logs = Part("logs")

    @property
    def prompt_history(self) -> Path:
        return renamed.existing(self.root / "prompt_history.jsonl")

    @property
    def tensorboard(self) -> Path:
        """Not in the folder: TensorBoard would find it in `latest` too."""
        return self.root.parent / "tensorboard" / self.root.name

    @classmethod
    def create(cls, directory: str | os.PathLike[str], name: str) -> RunFolder:
        """Make a new folder for run `name` and point `latest` to it. Raises `UserError` where it cannot."""
        if problems := [*naming(name)]:
            raise UserError(problems[0])
        parent = Path(directory)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = cls(_make_newest(parent, name))
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
        try:
            folder._make_parts()
            folder.point_latest()
        except OSError as error:
            raise UserError(f"resume={path}: nothing can be written there: {error}.") from error
        return folder

    @classmethod
    def newest(cls, directory: str | os.PathLike[str], name: str) -> RunFolder | None:
        """The newest run of this name that has a checkpoint; None where there is none.

        What another user may have put there is passed over, with a warning. Raises `UserError` where there is
        nothing else.
        """
        checkpoints = Path(directory).glob(f"{name}-*/checkpoints/step-*")
        runs = {path.parents[1].name for path in checkpoints if path.is_dir()}
        refused = []
        while (newest := newest_name(runs, name)) is not None:
            runs.remove(newest)
            folder = cls(Path(directory, newest))
            if (why := foreign(folder.root, folder.checkpoints)) is None:
                return folder
            refused.append(why)
            logging.getLogger(__name__).warning("resume=auto passes over %s: %s", folder.root, why)
        if refused:
            raise UserError(
                f"resume=auto: {'; '.join(refused)}. Name the run with resume=FOLDER if you trust it, or start one of "
                "your own with resume=never."
            )
        return None

    def append_metrics(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Add one step to metrics.jsonl and hand back what was written, or waits for room (`lines.waiting`).

        Values that are NaN or infinite become null, and `observe/non_finite` counts them.
        """
        written, num_non_finite = _finite(line)
        written["observe/non_finite"] = num_non_finite
        self.lines.add(json.dumps(written, allow_nan=False).encode() + b"\n")
        return written

    def amend_metrics(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Add values to the last line of metrics.jsonl, as `append_metrics` writes them; hands back these."""
        written, num_non_finite = _finite(line)
        self.lines.settle()
        *before, last = self.read_metrics()
        last |= written
        last["observe/non_finite"] += num_non_finite
        self._write_metrics([*before, last])
        return written

    @cached_property
    def lines(self) -> GrowingFile:
        """metrics.jsonl as it is written."""
        return GrowingFile(self.metrics)

    def _write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        write_atomic(self.metrics, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl that are whole, as `read_json_lines` reads them."""
        return [renamed.metrics(line) for line in read_json_lines(self.metrics)]

    def check_unused(self) -> None:
        """Raises `UserError` where steps were written, which a run that begins here would erase."""
        if lines := self.read_metrics():
            raise UserError(
                f"resume={self.root}: there is no checkpoint to go on from, and to start at the beginning would erase "
                f"{len(lines)} lines of metrics. Put a checkpoint back into {self.checkpoints}, or start a run of "
                "its own with resume=never."
            )

    def cut_after(self, step: int) -> int:
        """Forget what came after `step`, before a run goes on from there; each step then appears once.

        Returns how many lines of metrics.jsonl were cut. Dumps of later rollouts are removed too.
        """
        self.lines.settle()
        lines = self.read_metrics()
        kept = [line for line in lines if line["step"] <= step]
        self._write_metrics(kept)
        for path in self.rollouts.glob("*-*.parquet"):
            number = path.stem.partition("-")[2]
            if number.isdecimal() and int(number) > step:
                path.unlink()
        return len(lines) - len(kept)

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
        for part in (self.rollouts, self.checkpoints, self.logs):
            part.mkdir(mode=MODE, exist_ok=True)


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
    made = {folder: time for folder in folders if (time := _time_of(folder, run)) is not None}
    return max(made, key=made.__getitem__, default=None)


def write_atomic(path: Path, text: str) -> None:
    """Replace the whole file or leave it as it was."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(storable(text), encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """The same with JSON, for people too."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are about a step; none where there is no file.

    Others are passed over: one left unfinished by a killed run or a full disk, or what a fault of the disk made of it.
    """
    found = []
    for text in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found


def foreign(*paths: Path) -> str | None:
    """Why another user could have made, or can change, what is there; None: only this one, or root.

    Ours is what belongs to whoever owns what we make beside it: some file systems know users by other numbers.
    """
    ours = {os.getuid(), 0}
    with suppress(OSError), tempfile.TemporaryFile(dir=paths[0].parent) as own:
        ours = {os.fstat(own.fileno()).st_uid, 0}
    for path in filter(os.path.lexists, paths):
        facts = path.stat()
        if facts.st_uid not in ours:
            return f"{path} belongs to another user (uid {facts.st_uid})"
        with_group = stat.S_IWGRP * (facts.st_gid != facts.st_uid)  # unless it is the user's own
        if facts.st_mode & (stat.S_IWOTH | with_group):
            return f"{path} can be changed by other users (to forbid it: chmod -R go-w {paths[0]})"
    return None


def _time_of(folder: str, run: str) -> tuple[str, int] | None:
    """Time and number in the name of a folder of the run `run`; None for other names."""
    match = re.fullmatch(re.escape(run) + r"-(\d{8}-\d{6})(?:-(\d+))?", folder, re.ASCII)
    return match and (match[1], int(match[2] or 1))


def _make_newest(parent: Path, name: str) -> Path:
    """A new folder whose name comes after those of all runs of this name that are ours."""
    stamp, number = f"{datetime.now(UTC):%Y%m%d-%H%M%S}", 1
    for path in parent.glob(f"{name}-*"):
        made = _time_of(path.name, name)
        if made is not None and made >= (stamp, number) and foreign(path) is None:
            stamp, number = made[0], made[1] + 1
    while True:
        path = parent / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            path.mkdir(mode=MODE)
            return path
        except FileExistsError:
            number += 1
