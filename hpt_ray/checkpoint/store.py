"""Folders of checkpoints that are either whole or not there.

    store = CheckpointStore(run_folder.checkpoints, keep=2)
    folder = store.begin(12)              # .partial-step-000012: anybody may write files into it
    store.commit(12, {"sampler": ...})    # state.json, MANIFEST.json, renamed to step-000012
    found = store.latest()                # the newest whole one, and which were rejected and why
    state = load_state(found.path)

MANIFEST.json names every file with its size and SHA-256. A folder without it, with a file missing or with
other bytes is never used. What the files mean is up to those who write them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE = "state.json"
MANIFEST = "MANIFEST.json"
BLOCK_BYTES = 8 * 2**20
NUM_HASHERS = 8  # files hashed at the same time


class CheckpointDamaged(RuntimeError):
    """A checkpoint is not whole. The message names it, the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class Found:
    """The newest whole checkpoint, if any, and the newer ones that could not be used: path → why."""

    path: Path | None
    rejected: dict[Path, str]


class CheckpointStore:
    """The checkpoints under `root`, of which the newest `keep` stay; 0 keeps all. One process writes."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep

    def begin(self, step: int) -> Path:
        """A new empty folder for the files of `step`. What an interrupted save left behind is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(".partial-step-*"):
            shutil.rmtree(leftover)
        partial = self._partial(step)
        partial.mkdir()
        return partial

    def commit(self, step: int, state: Mapping[str, Any], *, keep_also: int | None = None) -> Path:
        """Add `state` (anything JSON can hold) and the manifest, make all of it durable, and rename.

        Older checkpoints beyond `keep` are removed, but for that of step `keep_also`.

        Raises `FileNotFoundError` where `begin(step)` did not come first.
        """
        partial, final = self._partial(step), self._final(step)
        (partial / STATE).write_text(json.dumps(state, indent=2, allow_nan=False), encoding="utf-8")
        names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        digests = _digests(partial, names)
        files = {name: {"bytes": (partial / name).stat().st_size, "sha256": digests[name]} for name in names}
        manifest = json.dumps({"step": step, "files": files}, indent=2)
        (partial / MANIFEST).write_text(manifest, encoding="utf-8")
        _sync_tree(partial)
        if final.exists():  # a resumed run saves a step again, e.g. because the old one was damaged
            shutil.rmtree(final)
        partial.rename(final)
        _sync(self.root)
        self._drop_old(keep_also)
        return final

    def steps(self) -> list[int]:
        """Steps of all committed checkpoints, oldest first, whether whole or not."""
        matches = (re.fullmatch(r"step-(\d+)", path.name) for path in self.root.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def latest(self, *, checksums: bool = True) -> Found:
        """The newest checkpoint that is whole: all sizes and, unless switched off, all contents compared."""
        rejected: dict[Path, str] = {}
        for step in reversed(self.steps()):
            path = self._final(step)
            try:
                verify(path, checksums=checksums)
            except CheckpointDamaged as error:
                rejected[path] = str(error)
            else:
                return Found(path, rejected)
        return Found(None, rejected)

    def _drop_old(self, keep_also: int | None) -> None:
        if self.keep > 0:
            for step in self.steps()[: -self.keep]:
                if step == keep_also:
                    continue
                # Renamed first, so that an interrupted removal does not leave half a checkpoint.
                aside = self._partial(step)
                self._final(step).rename(aside)
                shutil.rmtree(aside)

    def _partial(self, step: int) -> Path:
        return self.root / f".partial-step-{step:06d}"

    def _final(self, step: int) -> Path:
        return self.root / f"step-{step:06d}"


def load_state(path: Path) -> dict[str, Any]:
    """The `state` of the checkpoint at `path`. Other files are compared by size only; `latest` reads them.

    Raises `CheckpointDamaged`.
    """
    verify(path, checksums=False)
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointDamaged(f"{path}: {STATE} cannot be read: {error}") from error


def verify(path: Path, *, checksums: bool) -> None:
    """Compare the files of one checkpoint with its manifest. Raises `CheckpointDamaged`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
    except FileNotFoundError:
        raise CheckpointDamaged(f"{path}: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{path}: {MANIFEST} cannot be read: {error}") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointDamaged(f"{path}: {name} is missing")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointDamaged(f"{path}: {name} has {size} bytes instead of {expected['bytes']}")
    if checksums:
        for name, digest in _digests(path, list(files)).items():
            if digest != files[name]["sha256"]:
                raise CheckpointDamaged(f"{path}: {name} has other contents than when it was saved")


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of each file. Several at the same time: hashing is what takes long, and it frees the GIL."""
    with ThreadPoolExecutor(NUM_HASHERS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def _sync_tree(folder: Path) -> None:
    """Files before the folders that name them, inner folders before outer ones."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
