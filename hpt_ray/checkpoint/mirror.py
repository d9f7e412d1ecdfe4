"""Copies of a run's checkpoints in another place: any store that fsspec knows, or a folder.

    URL/RUN/config.yaml, metrics.jsonl, prompt_history.jsonl     as they were at the newest copy
    URL/RUN/step-000012/…                                  a checkpoint, its manifest written last

Stores have no rename, so a copy is whole when its manifest is there and fits. What a copy costs in time is
limited; when to copy, and what a failure means, is up to the checkpoint store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from hpt_ray.checkpoint.manifest import (
    MANIFEST,
    CheckpointDamaged,
    folder_name,
    kept_steps,
    read_manifest,
    steps_of,
)
from hpt_ray.config import renamed
from hpt_ray.errors import UserError, WaitExpired
from hpt_ray.observe.run_folder import MODE, RunFolder, newest_name

RUN_FILES = ("config.yaml", "metrics.jsonl", "prompt_history.jsonl")
OLD_FILES = tuple(renamed.FILES[name] for name in RUN_FILES if name in renamed.FILES)
WAIT_S = 60.0  # for anything; copies get more by their size
SLOWEST_BYTES_PER_S = 4 * 2**20  # a store that is slower counts as unreachable

T = TypeVar("T")


class Mirror:
    """The copies of one run. Errors are those of the store, or `WaitExpired`; not all are `OSError`.

    Raises `UserError` for a URL of an unknown kind, or of one whose package is not installed.
    """

    def __init__(self, url: str, run: Path):
        self._fs, base = _open(url)
        self._run = run.resolve()
        self.url = f"{url.rstrip('/')}/{self._run.name}"
        self._base = f"{base.rstrip('/')}/{self._run.name}"

    def copy(self, checkpoint: Path, *, keep: int, keep_also: int | None) -> None:
        """Copy a whole checkpoint and the run's own files; then remove what `keep` does not keep."""
        files = read_manifest(checkpoint)
        total = sum(num_bytes for num_bytes, _ in files.values())
        _within(f"{self.url}: copy {checkpoint.name}", lambda: self._copy(checkpoint, list(files)), total)
        (step,) = steps_of([checkpoint.name])
        _within(f"{self.url}: remove old copies", lambda: self._drop_old(step, keep, keep_also))

    def steps(self) -> list[int]:
        """Steps whose copy has a manifest, oldest first. Raises `UserError` where the store cannot be read."""
        return _read(self.url, "list", self._steps)

    def fetch(self, step: int, folder: Path) -> None:
        """Download the files of one copy into `folder`; nothing is compared here.

        Raises `CheckpointDamaged` where one is missing, `UserError` where the store cannot be read.
        """

        def get(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._fs.get_file(f"{self._base}/{folder_name(step)}/{name}", str(folder / name))
            except FileNotFoundError:
                raise CheckpointDamaged(f"{folder_name(step)}: {name} is missing") from None

        _read(self.url, f"read {MANIFEST}", partial(get, MANIFEST))
        for name, (num_bytes, _) in read_manifest(folder).items():
            _read(self.url, f"read {name}", partial(get, name), num_bytes)

    def _copy(self, checkpoint: Path, names: list[str]) -> None:
        target = f"{self._base}/{checkpoint.name}"
        self._remove(target)  # what an earlier attempt left
        for name in [*names, MANIFEST]:
            self._put(checkpoint / name, f"{target}/{name}")
        for name in RUN_FILES:
            if (self._run / name).is_file():
                self._put(self._run / name, f"{self._base}/{name}")

    def _put(self, file: Path, target: str) -> None:
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(file), target)

    def _steps(self) -> list[int]:
        names = _names(self._fs, self._base)
        whole = (name for name in names if self._fs.exists(f"{self._base}/{name}/{MANIFEST}"))
        return steps_of(whole)

    def _drop_old(self, saved: int, keep: int, keep_also: int | None) -> None:
        """Half copies go, too."""
        kept = kept_steps(self._steps(), saved, keep, keep_also)
        for step in set(steps_of(_names(self._fs, self._base))) - kept:
            self._remove(f"{self._base}/{folder_name(step)}")

    def _remove(self, folder: str) -> None:
        """The manifest first, so that what is half removed is not taken for whole."""
        self._fs.invalidate_cache()
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)


def restore_newest_run(url: str, directory: str, name: str) -> RunFolder | None:
    """The folder of the newest run of this name that has a copy at `url`, made anew under `directory`.

    It gets config.yaml and the lines of metrics; the checkpoint itself comes with `CheckpointStore.latest`.
    None where there is no such run. Raises `UserError` where the store cannot be read.
    """
    fs, base = _open(url)

    def find() -> Path | None:
        runs = _names(fs, base)
        while (run := newest_name(runs, name)) is not None:
            runs.remove(run)
            if Mirror(url, Path(directory, run)).steps():
                return Path(directory, run)
        return None

    def get(root: Path) -> None:
        root.mkdir(mode=MODE, parents=True, exist_ok=True)
        for file in (*RUN_FILES, *OLD_FILES):
            if not (root / file).exists() and fs.exists(f"{base}/{root.name}/{file}"):
                fs.get_file(f"{base}/{root.name}/{file}", str(root / file))

    if (root := _read(url, "look for runs", find)) is None:
        return None
    _read(url, f"read {root.name}", partial(get, root))
    return RunFolder(root)


def check_mirror(url: str) -> None:
    """Raises `UserError` for a URL of an unknown kind, or of one whose package is not installed. Nothing is asked."""
    _open(url)


def _open(url: str) -> tuple[Any, str]:
    try:
        fs, base = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"checkpoint.mirror={url}: {error}. Give a folder or a URL of a kind that fsspec knows, and "
            "install the package for that kind."
        ) from error
    return fs, base.rstrip("/")


def _names(fs: Any, folder: str) -> list[str]:
    """The names in a folder; none where there is no such folder (or prefix)."""
    fs.invalidate_cache()
    try:
        return [path.rstrip("/").rpartition("/")[2] for path in fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []


def _read(url: str, what: str, function: Callable[[], T], num_bytes: int = 0) -> T:
    """As `_within`; raises `UserError` where the store at `url` cannot be read."""
    try:
        return _within(f"{url}: {what}", function, num_bytes)
    except (UserError, CheckpointDamaged):
        raise
    except Exception as error:  # of the store's own kind
        raise UserError(
            f"checkpoint.mirror: {url} cannot be read ({type(error).__name__}: {error}). The run folder has no "
            "whole checkpoint, so it is needed: mend it, or unset checkpoint.mirror to start anew."
        ) from error


def _within(what: str, function: Callable[[], T], num_bytes: int = 0) -> T:
    """`function()`, which moves so many bytes, but no longer than a store may take; then `WaitExpired`.

    The thread cannot be stopped, only left behind: as a daemon it does not hold up the end of the process.
    """
    limit_s = WAIT_S + num_bytes / SLOWEST_BYTES_PER_S
    result: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            result.append(function())
        except BaseException as error:  # raised again by the one who waits
            errors.append(error)

    thread = threading.Thread(target=work, name=what, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise WaitExpired(f"'{what}' did not finish within {limit_s:.0f} s")
    if errors:
        raise errors[0]
    return result[0]
