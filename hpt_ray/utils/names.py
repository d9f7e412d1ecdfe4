"""Names that a user writes and a table has, or has not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpt_ray.errors import UserError


def check_name(key: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known, else a `UserError` that names the configuration `key` and the nearest names."""
    names = sorted(known)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"{key}={name}: no such name. {hint}There are: {', '.join(names)}.")


def dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every entry by its full name: `{"run": {"seed": 1}}` as `{"run.seed": 1}`. A dict without keys stays."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        is_section = isinstance(value, Mapping) and value
        found |= dotted(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return found


def nearest_path(path: Path, *, holding: str = "") -> Path | None:
    """What stands beside `path` under the name most like its own; with `holding`, a folder that has such a file."""
    try:
        beside = [other for other in path.parent.iterdir() if (other / holding).exists()]
    except OSError:
        return None
    by_name = {other.name: other for other in beside}
    folded = {name.lower(): name for name in by_name}
    near = difflib.get_close_matches(path.name.lower(), folded, n=1)
    return by_name[folded[near[0]]] if near else None
