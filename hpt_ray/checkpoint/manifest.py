"""What makes a folder of files a whole checkpoint: a manifest with the size and SHA-256 of each file.

A folder without `MANIFEST.json`, with a file missing or with other bytes is damaged and never used. The
manifest is therefore the last file that is written or copied, and the first that is removed. It may come from
elsewhere (`checkpoint.mirror`), so what it names must lie inside the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

MANIFEST = "MANIFEST.json"
NUM_HASHERS = 8  # files hashed at the same time


class CheckpointDamaged(RuntimeError):
    """A checkpoint is not whole. The message names it, the file and what is wrong."""


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def steps_of(names: Iterable[str]) -> list[int]:
    """The steps that folders called `names` hold, oldest first; other names, as `step-3`, are passed over."""
    matches = [(name, re.fullmatch(r"step-([0-9]+)", name)) for name in names]
    steps = [(name, int(match[1])) for name, match in matches if match]
    return sorted(step for name, step in steps if name == folder_name(step))


def kept_steps(steps: Sequence[int], saved: int, keep: int, keep_also: int | None) -> set[int]:
    """Which of `steps` (of whole checkpoints, oldest first) stay after that of step `saved`.

    The newest `keep` up to it (0: all), `keep_also`, and later ones, which the run has yet to come to.

    Example: `kept_steps([5, 10, 15, 20], saved=15, keep=1, keep_also=5) == {5, 15, 20}`.
    """
    past = [step for step in steps if step <= saved]
    return {*past[-keep:], *(step for step in steps if step > saved or step == keep_also)}


def write_manifest(folder: Path, step: int) -> None:
    """Name every file that is in `folder`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digests = _digests(folder, names)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digests[name]} for name in names}
    (folder / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=2), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file by its name. Raises `CheckpointDamaged`."""
    try:
        named = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        files = {name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in named.items()}
    except FileNotFoundError:
        raise CheckpointDamaged(f"{folder}: {MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"{folder}: {MANIFEST} cannot be read: {error}") from error
    if not files:
        raise CheckpointDamaged(f"{folder}: {MANIFEST} names no files")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable():
            raise CheckpointDamaged(
                f"{folder}: {MANIFEST} names {name!r}, which is not inside the checkpoint"
            )
    return files


def verify(folder: Path, *, checksums: bool) -> None:
    """Compare the files of one checkpoint with its manifest. Raises `CheckpointDamaged`."""
    files = read_manifest(folder)
    try:
        _compare(folder, files, checksums=checksums)
    except OSError as error:
        raise CheckpointDamaged(f"{folder}: cannot be read: {error}") from error


def _compare(folder: Path, files: Mapping[str, tuple[int, str]], *, checksums: bool) -> None:
    for name, (num_bytes, _) in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointDamaged(f"{folder}: {name} is missing")
        size = file.stat().st_size
        if size != num_bytes:
            raise CheckpointDamaged(f"{folder}: {name} has {size} bytes instead of {num_bytes}")
    if checksums:
        for name, digest in _digests(folder, list(files)).items():
            if digest != files[name][1]:
                raise CheckpointDamaged(f"{folder}: {name} has other contents than when it was saved")


def sync_tree(folder: Path) -> None:
    """Make all of it durable: files before the folders that name them, inner folders before outer ones."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of each file. Several at the same time: hashing is what takes long, and it frees the GIL."""
    with ThreadPoolExecutor(NUM_HASHERS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(file: Path) -> str:
    with file.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
