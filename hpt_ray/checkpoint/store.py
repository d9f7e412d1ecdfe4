"""Folders of checkpoints that are either whole or not there.

    store = CheckpointStore(run_folder.checkpoints, keep=2)
    folder = store.begin(12)              # .partial-step-000012: anybody may write files into it
    store.commit(12, state.to_json())     # state.json, MANIFEST.json, renamed to step-000012, mirrored
    found = store.latest()                # the newest whole one, and which were rejected and why
    store.set_aside(found.rejected)       # damaged-step-000011: not counted, and for you to look at and remove

`commit` may run in a thread while the next step goes on; until it has returned there is no other `begin`.
What the files mean is up to those who write them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_ray.checkpoint.manifest import (
    CheckpointDamaged,
    folder_name,
    kept_steps,
    steps_of,
    sync,
    sync_tree,
    verify,
    write_manifest,
)
from hpt_ray.checkpoint.mirror import Mirror

STATE = "state.json"
PARTIAL = ".partial-"
REPLACED = f"{PARTIAL}replaced-"
DAMAGED = "damaged-"


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be saved. The message names the step, the disk and what was left of it."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint that was saved, and what went wrong after it was whole.

    `mirror_problem` says why its copy was not made; None: it was, or none is due. `old_problem` says why older
    checkpoints could not be removed.
    """

    path: Path
    mirror_problem: str | None = None
    old_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The newest whole checkpoint, if any, and the newer ones that could not be used: path → why."""

    path: Path | None
    rejected: dict[Path, str]
    from_mirror: bool = False  # downloaded just now


class CheckpointStore:
    """The checkpoints under `root`, of which the newest `keep` whole ones stay; 0 keeps all. One process writes."""

    def __init__(self, root: Path, keep: int, mirror: Mirror | None = None) -> None:
        self.root = root
        self.keep = keep
        self.mirror = mirror
        self._committing: int | None = None

    def begin(self, step: int) -> Path:
        """A new empty folder for the files of `step`. What an interrupted save left behind is removed."""
        assert self._committing is None, f"wait for the commit of step {self._committing} first"
        self.root.mkdir(parents=True, exist_ok=True)
        self.put_back()
        for leftover in self.root.glob(f"{PARTIAL}*"):
            _remove(leftover)
        partial = self._partial(step)
        partial.mkdir()
        return partial

    def commit(self, step: int, state: Mapping[str, Any], *, keep_also: int | None = None) -> Committed:
        """Add `state` (anything JSON can hold) and the manifest, make all of it durable, rename, mirror.

        Older checkpoints beyond `keep` are removed, but for that of step `keep_also`. Only whole ones count,
        and damaged ones are set aside. A mirror that fails is said in what is returned.

        Raises `CheckpointFailed` where it cannot be saved; older checkpoints then stay as they are.
        `FileNotFoundError` where `begin(step)` did not come first.
        """
        partial = self._partial(step)
        if not partial.is_dir():
            raise FileNotFoundError(f"{partial}: begin({step}) comes before its commit")
        self._committing = step
        try:
            (partial / STATE).write_text(json.dumps(state, indent=2, allow_nan=False), encoding="utf-8")
            write_manifest(partial, step)
            sync_tree(partial)
            self._put_in_place(partial, self._final(step))
        except Exception as error:  # of the disk, or of what writes to it
            raise self.failed(step, error) from error
        else:
            old_problem = self._drop_old(step, keep_also)
            return Committed(self._final(step), self._mirror(step, keep_also), old_problem)
        finally:
            self._committing = None

    def failed(self, step: int, error: Exception) -> CheckpointFailed:
        """Remove what there is of the save of `step`, and say what went wrong and how full the disk is.

        For errors of those who write the files, too: `raise store.failed(step, error) from error`.
        """
        shutil.rmtree(self._partial(step), ignore_errors=True)
        stays = "Older checkpoints were not touched"
        free = total = "nothing that can be read"
        with suppress(OSError):  # where the folder itself is gone, or this process may open no more files
            disk = shutil.disk_usage(self.root)
            free, total = _size(disk.free), _size(disk.total)
            steps = self.steps()
            stays = (
                f"The newest checkpoint is still {folder_name(steps[-1])}" if steps else "There is no other"
            )
        return CheckpointFailed(
            f"the checkpoint of step {step} could not be saved: {error}. The disk of {self.root} "
            f"has {free} free of {total}. {stays}. Make room there, or lower checkpoint.keep."
        )

    def steps(self) -> list[int]:
        """Steps of all committed checkpoints, oldest first, whether whole or not."""
        return steps_of(path.name for path in self.root.glob("step-*") if path.is_dir())

    def latest(
        self,
        *,
        checksums: bool = True,
        up_to: int | None = None,
        check: Callable[[Path], object] = lambda path: None,
    ) -> Found:
        """The newest checkpoint that is whole: all sizes and, unless switched off, all contents compared.

        `up_to`: later steps are passed over. `check` raises `CheckpointDamaged` for one that it cannot use. Where
        the folder has none, the mirror's newest whole one is downloaded into it. Raises `UserError` where the
        mirror is needed and cannot be read.
        """
        rejected: dict[Path, str] = {}
        for step in reversed(_until(self.steps(), up_to)):
            path = self._final(step)
            try:
                verify(path, checksums=checksums)
                check(path)
            except CheckpointDamaged as error:
                rejected[path] = str(error)
            else:
                return Found(path, rejected)
        if self.mirror is None:
            return Found(None, rejected)
        return self._download(self.mirror, rejected, up_to, check)

    def put_back(self) -> None:
        """Have a checkpoint again that was about to be replaced when its process ended."""
        for replaced in self.root.glob(f"{REPLACED}*"):
            final = self.root / replaced.name.removeprefix(REPLACED)
            if not final.exists():
                replaced.rename(final)

    def set_aside(self, damaged: Iterable[Path]) -> None:
        """Rename them, so that they are not counted and never used. They stay until somebody removes them."""
        for path in damaged:
            aside, number = path.with_name(f"{DAMAGED}{path.name}"), 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"{DAMAGED}{path.name}-{number}")
            if path.exists():  # it does not where the mirror's copy is the damaged one
                path.rename(aside)

    def _download(
        self,
        mirror: Mirror,
        rejected: dict[Path, str],
        up_to: int | None,
        check: Callable[[Path], object],
    ) -> Found:
        for step in reversed(_until(mirror.steps(), up_to)):
            partial, final = self.begin(step), self._final(step)
            try:
                mirror.fetch(step, partial)
                verify(partial, checksums=True)
                check(partial)
            except CheckpointDamaged as error:
                shutil.rmtree(partial)
                why = f"in {mirror.url}: {error}"
                rejected[final] = f"{rejected[final]}; {why}" if final in rejected else why
            else:
                sync_tree(partial)
                self._put_in_place(partial, final)
                return Found(final, rejected, from_mirror=True)
        return Found(None, rejected)

    def _mirror(self, step: int, keep_also: int | None) -> str | None:
        if self.mirror is None:
            return None
        try:
            self.mirror.copy(self._final(step), keep=self.keep, keep_also=keep_also)
        except Exception as error:  # of any store's own kind; the run needs its disk, not the mirror
            return f"{self.mirror.url}: {type(error).__name__}: {error}"
        return None

    def _put_in_place(self, partial: Path, final: Path) -> None:
        """Rename, over a checkpoint of the same step if a resumed run saves it again."""
        replaced = final.with_name(f"{REPLACED}{final.name}")
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync(self.root)
        if replaced.exists():
            _remove(replaced)

    def _drop_old(self, saved: int, keep_also: int | None) -> str | None:
        """Remove what `keep` does not keep after `saved`; why that was not possible, if it was not."""
        try:
            whole = [step for step in self.steps() if self._is_whole(step)]
            self.set_aside(self._final(step) for step in set(self.steps()) - set(whole))
            for step in sorted(set(whole) - kept_steps(whole, saved, self.keep, keep_also)):
                # Renamed first, so that an interrupted removal does not leave half a checkpoint.
                aside = self._partial(step)
                self._final(step).rename(aside)
                _remove(aside)
        except OSError as error:
            return f"older checkpoints could not be removed: {error}"
        return None

    def _is_whole(self, step: int) -> bool:
        """By its sizes: to read it all would take too long for every save."""
        try:
            verify(self._final(step), checksums=False)
        except CheckpointDamaged:
            return False
        return True

    def _partial(self, step: int) -> Path:
        return self.root / f"{PARTIAL}{folder_name(step)}"

    def _final(self, step: int) -> Path:
        return self.root / folder_name(step)


def load_state(path: Path) -> dict[str, Any]:
    """The `state` of the checkpoint at `path`. Other files are compared by size only; `latest` reads them.

    Raises `CheckpointDamaged`.
    """
    verify(path, checksums=False)
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointDamaged(f"{path}: {STATE} cannot be read: {error}") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _until(steps: list[int], up_to: int | None) -> list[int]:
    return [step for step in steps if up_to is None or step <= up_to]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
