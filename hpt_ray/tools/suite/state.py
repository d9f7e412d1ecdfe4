"""What of a suite is done already: read from the run folders, decided without side effects.

A run is done when its summary is there and its configuration is the wanted one. A run that was cut off goes
on from its checkpoint, or starts again. A run whose configuration differs is never used: it is said what
differs, the run is made anew, and the old folder stays where it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from hpt_ray.config import renamed
from hpt_ray.config.schema import Config
from hpt_ray.observe.run_folder import RunFolder, newest_name
from hpt_ray.tools.report.load import flat_keys
from hpt_ray.tools.suite.matrix import RunSpec, flat

# Where a run lies, what it shows and how long it waits: nothing that changes what it learns.
NEUTRAL = ("run.dir", "resume", "cluster.", "observe.", "checkpoint.mirror", "weight_sync.timeout_s")
NEUTRAL_ENDINGS = ("timeout_s", "max_restarts")


class Action(Enum):
    DONE = "done"
    CONTINUE = "to continue"
    RUN = "to run"
    CHANGED = "to run again, for its configuration changed"


@dataclass(frozen=True, slots=True)
class State:
    """What is to be done about a run, the folder that it is done or continued in, and what differs."""

    action: Action
    root: Path | None = None
    differences: Sequence[str] = ()

    @property
    def is_done(self) -> bool:
        return self.action is Action.DONE


def state_of(spec: RunSpec) -> State:
    """What to do about a run, from what its newest folder holds."""
    directory = Path(spec.config.run.dir)
    newest = newest_name([path.name for path in directory.glob(f"{spec.id}-*")], spec.id)
    if newest is None:
        return State(Action.RUN)
    folder = RunFolder(directory / newest)
    written, is_finished = _written(folder.config), _is_whole(folder.summary)
    if written is None:
        unreadable = State(Action.CHANGED, None, ["its config.yaml cannot be read"])
        return unreadable if is_finished else State(Action.RUN)
    if differing := differences(written, flat(spec.config)):
        return State(Action.CHANGED, None, differing)
    if is_finished:
        return State(Action.DONE, folder.root)
    can_continue = any(folder.checkpoints.glob("step-*"))
    return State(Action.CONTINUE, folder.root) if can_continue else State(Action.RUN)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: old → new` of every key that changes what a run learns or is asked."""
    return [
        f"{name}: {before.get(name)!r} → {now.get(name)!r}"
        for name in dict.fromkeys((*before, *now))
        if not _is_neutral(name) and before.get(name) != now.get(name)
    ]


def fingerprint(config: Config) -> str:
    """The same for two configurations of one `run.dir` between which `differences` finds nothing."""
    keys = {name: value for name, value in flat(config).items() if not _is_neutral(name)}
    text = repr(sorted({**keys, "run.dir": config.run.dir}.items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _is_neutral(name: str) -> bool:
    return name.startswith(NEUTRAL) or name.endswith(NEUTRAL_ENDINGS)


def _written(path: Path) -> dict[str, Any] | None:
    """The flat keys of a run's config.yaml, or None. A key that did not exist yet had its default."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    if not isinstance(content, dict):
        return None
    keys = flat_keys(renamed.config(content))
    sections = {name.rsplit(".", n)[0] for name in keys for n in range(name.count(".") + 1)}
    return {k: v for k, v in flat(Config()).items() if k not in sections} | keys


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
