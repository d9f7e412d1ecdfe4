"""Folders that can be made again: generated data and tokenised prompts.

They live under `$HPT_RAY_CACHE` (default `~/.cache/hpt_ray`). A folder appears there complete or not
at all: it is written aside and renamed. Its name carries everything that it depends on, so what is
there is never stale, and any of it may be deleted while no run uses it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from hpt_ray.errors import UserError


def cache_dir() -> Path:
    """The root of all caches."""
    root = os.environ.get("HPT_RAY_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "hpt_ray"


def cached_folder(path: Path, build: Callable[[Path], object]) -> Path:
    """`path`, after `build(folder)` has filled it if it was not there.

    Several processes may ask at the same time: each builds aside, the first rename wins and the
    others throw theirs away. Raises UserError where the disk cannot be written.
    """
    if path.is_dir():
        return path
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        build(aside)
        try:
            aside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise UserError(
            f"Cannot write the cache folder {path}: {error}. Free some space, or set HPT_RAY_CACHE to a "
            "folder that can be written."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path
