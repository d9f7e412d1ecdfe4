"""What the page asks of run folders: which runs there are, curves, configuration.

In: folders. Out: plain lists and dicts for JSON. Only reads; a run may be done, going on or killed. A run is known by
its path below the folder that was given, and no other path is ever opened.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from hpt_ray.config import renamed
from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.watch.lines import JsonLines, last_line

DEPTH = 3  # folders below the one given in which a run is looked for
DIGITS = 6  # of a value of a curve
ALL_SETS = "eval/all sets/mean"  # beside the metrics of the run
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built


class Run:
    """One run folder, read as far as it was asked for."""

    def __init__(self, root: Path):
        self.folder = RunFolder(root)
        self.metrics = JsonLines(
            self.folder.metrics, lambda names: list(renamed.metrics(dict.fromkeys(names)))
        )
        self.history = JsonLines(
            self.folder.prompt_history, lambda names: list(renamed.fields(dict.fromkeys(names)))
        )
        self._files = [str(path) for path in (self.folder.metrics, self.folder.config, self.folder.summary)]
        self._config: tuple[float, dict[str, Any]] = (-1.0, {})
        self._facts: tuple[tuple[float, ...], dict[str, Any]] = ((), {})

    @property
    def config(self) -> dict[str, Any]:
        """Nested, under today's names; empty where it cannot be read."""
        changed = _changed(self.folder.config)
        if changed != self._config[0]:
            try:
                content = yaml.load(self.folder.config.read_text("utf-8"), _LOADER)
                self._config = (changed, renamed.config(content))
            except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
                return {}
        return self._config[1]

    def facts(self) -> dict[str, Any]:
        """What the list of runs shows. `version` changes with every line that is written."""
        changed = tuple(map(_changed, self._files))
        if changed != self._facts[0]:
            self._facts = (changed, self._read_facts(changed))
        return self._facts[1] | {"unreadable": self.metrics.num_unreadable + self.history.num_unreadable}

    def _read_facts(self, changed: tuple[float, ...]) -> dict[str, Any]:
        line = renamed.metrics(_json(last_line(self.folder.metrics)))
        config = self.config
        summary = _json(_bytes(self.folder.summary))
        step, total = line.get("step") or 0, config.get("run", {}).get("steps")
        return {
            "name": self.folder.root.name,
            "step": step,
            "total": total,
            "reward": line.get("reward/mean"),
            "algorithm": config.get("algorithm", {}).get("name"),
            "model": config.get("model", {}).get("path"),
            "seed": config.get("run", {}).get("seed"),
            "done": bool(summary) and (not isinstance(total, int) or step >= total),
            "changed": max(changed[:2]),
            "version": str(changed[0]),
        }

    def tokenizer_files(self) -> Iterator[Path]:
        """Where the tokenizer's file may be: the newest checkpoint, the model's folder, the Hub's cache."""
        yield from sorted(self.folder.checkpoints.glob("step-*/hf/tokenizer.json"), reverse=True)
        model = str(self.config.get("model", {}).get("path") or "")
        yield Path(model).expanduser() / "tokenizer.json"
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(model, "tokenizer.json")
        except HFValidationError:  # a folder, or a model of the small task
            return
        if isinstance(cached, str):
            yield Path(cached)


class Runs:
    """The runs in `folders`, each of which is a run or holds runs. New ones are found at every look."""

    def __init__(self, folders: Sequence[Path]):
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder. Give a run folder, or a folder of runs.")
        self._folders = [folder.resolve() for folder in folders]
        self._known: dict[str, Run] = {}

    def all(self) -> dict[str, Run]:
        """By id, in the order of their ids."""
        known = {str(run.folder.root): run for run in self._known.values()}
        found = dict(sorted(each for folder in self._folders for each in _found(str(folder), "", known)))
        self._known = {name: known.get(path) or Run(Path(path)) for name, path in found.items()}
        return self._known

    def __getitem__(self, name: str) -> Run:
        """Raises `KeyError` for what is not one of the runs."""
        return self._known[name] if name in self._known else self.all()[name]


def _found(path: str, below: str, known: Collection[str], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Name and path of each run; `below` is the path from the folder given. Into one that is `known` nobody looks."""
    try:
        entries = {entry.name: entry for entry in os.scandir(path)} if path not in known else {}
    except OSError:  # removed meanwhile, or not ours to read
        return
    if path in known or {"config.yaml", "rollouts"} <= entries.keys():
        yield below or os.path.basename(path), path
    elif depth < DEPTH:
        for name, entry in entries.items():
            if entry.is_dir(follow_symlinks=False):
                yield from _found(entry.path, f"{below}/{name}".lstrip("/"), known, depth + 1)


# -- curves ----------------------------------------------------------------------------------------


def curves(
    run: Run,
    patterns: Sequence[str],
    *,
    first: int,
    width: int,
    count: int,
    smooth: int = 1,
    bands: bool = True,
) -> dict[str, Any]:
    """The metrics that match, in `count` buckets of `width` steps from step `first`.

    `curves`: by metric, the bucket's `mean`; `low` and `high`, with `bands` and where a bucket is more than one step;
    `smooth`, the mean over the last `smooth` values, where that is more than one. None where a bucket has no value.
    `names`: all metrics of the run. `planned`: what a metric should be at most. `begun`: another number than before
    where earlier buckets may be others now.
    """
    table = run.metrics.table()
    names = [name for name in table.column_names if name != "step"]
    wanted = _any_of(tuple(patterns))
    steps = _numbers(table, "step")
    if smooth == 1 and np.all(np.diff(steps) >= 0):  # what is new is at the end
        begin = int(np.searchsorted(steps, first))
        table, steps = table.slice(begin), steps[begin:]
    columns = {name: _numbers(table, name) for name in filter(wanted.match, names)}
    sets = [name for name in names if re.fullmatch(r"eval/[^/]+/mean", name)]
    if len(sets) > 1 and wanted.match(ALL_SETS):
        every = [_numbers(table, name) for name in sets]
        columns[ALL_SETS] = np.mean(every, axis=0)  # where each has a value
    parts = {
        (name, part): values
        for name, column in columns.items()
        for part, values in _curve(steps, column, first, width, count, smooth, bands).items()
    }
    found: dict[str, dict[str, list[float | None]]] = {}
    for (name, part), values in zip(parts, rounded(np.array([*parts.values()])), strict=True):
        found.setdefault(name, {})[part] = values
    planned = {name: most for name, most in _json(_bytes(run.folder.plan)).items() if name in found}
    return {"names": names, "curves": found, "planned": planned, "begun": run.metrics.num_begun}


@functools.lru_cache(16)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)))


def _curve(
    steps: np.ndarray, values: np.ndarray, first: int, width: int, count: int, smooth: int, bands: bool
) -> dict[str, np.ndarray]:
    there = np.isfinite(values) & np.isfinite(steps)
    steps, values = steps[there], values[there]
    smoothed = rolling_mean(values, smooth) if smooth > 1 else None
    bucket = (steps.astype(int) - first) // width
    inside = (bucket >= 0) & (bucket < count)
    bucket, values = bucket[inside], values[inside]
    if not len(values):
        return {}
    num = np.bincount(bucket, minlength=count)
    num = np.where(num, num, np.nan)
    curve = {"mean": np.bincount(bucket, values, count) / num}
    if bands and width > 1:
        curve |= {"low": np.full(count, np.nan), "high": np.full(count, np.nan)}
        np.fmin.at(curve["low"], bucket, values)
        np.fmax.at(curve["high"], bucket, values)
    if smoothed is not None:
        curve["smooth"] = np.bincount(bucket, smoothed[inside], count) / num
    return curve


def rolling_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` values, of fewer at the beginning. Example: `[1, 3, 5], 2` gives `[1, 2, 4]`."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return (sums[ends] - sums[begins]) / (ends - begins)


def rounded(values: np.ndarray) -> list[Any]:
    """To `DIGITS` significant digits, as a list of the same shape; None for NaN."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.floor(np.log10(np.abs(values)))
        factor = 10.0 ** (DIGITS - 1 - np.where(np.isfinite(size), size, 0))
        short = np.round(values * factor) / factor
    short = np.where(np.isfinite(short), short, values)  # too small or large for the factor
    there = short.astype(object)
    there[np.isnan(short)] = None
    return there.tolist()


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as floats, NaN where it has no value; all NaN where it holds no numbers."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    try:
        return table[name].cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(table), np.nan)


def _json(text: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(text or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _changed(path: str | Path) -> float:
    try:
        return os.stat(path).st_mtime  # of Path it takes twice as long, and this is asked of every run
    except OSError:
        return 0.0
