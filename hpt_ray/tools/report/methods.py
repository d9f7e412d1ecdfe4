"""Runs grouped into methods: the seeds of one configuration together, with one name and one colour each.

Two runs are of one method where their configurations differ only in what does not change what is learned:
seed, names, folders, where it ran, how often it was looked at (`NOT_METHOD`). A method is named by its
algorithm, and by the keys that tell it from the others.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from hpt_ray.config.load import known_keys
from hpt_ray.text import redacted
from hpt_ray.tools.report.load import RunData, flat_keys
from hpt_ray.tools.report.style import method_styles

NOT_METHOD = ("run.seed", "run.name", "run.dir", "resume", "observe", "cluster", "checkpoint", "evaluation")
NAME = "algorithm.name"
PHASES = "phases"
NUM_KEYS_IN_LABEL = 3
DASH = "–"  # where there is no value


@dataclass(frozen=True, slots=True)
class Method:
    """The runs of one configuration. `color` and `dash` are the same in every figure of a page."""

    label: str
    color: str
    dash: str  # a line style of matplotlib
    runs: Sequence[RunData]

    @property
    def seeds(self) -> list[int | None]:
        return [run.seed for run in self.runs]


def group_runs(runs: Sequence[RunData], labels: Mapping[Path, str] | None = None) -> list[Method]:
    """The methods, in the order in which their first runs are given.

    `labels`: names by the runs' folders. Runs of one label are one method, whatever their configurations.
    """
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        given = labels and labels.get(run.root)
        groups.setdefault(given or _identity(run), []).append(run)
    names = list(groups) if labels else _labels([group[0] for group in groups.values()])
    styles = method_styles([algorithm_of(group[0]) for group in groups.values()])
    return [
        Method(name, color, dash, group)
        for name, (color, dash), group in zip(names, styles, groups.values(), strict=True)
    ]


def algorithm_of(run: RunData) -> str:
    """The algorithm's name; of a run in phases those of all phases, as in `sft→grpo`."""
    own = str(run.config.get(NAME, run.config.get("run.name", run.name)))
    names = [str(flat_keys(phase).get(NAME, own)) for phase in run.config.get(PHASES) or []]
    return "→".join(name for name, _ in itertools.groupby(names)) or own


def differing_keys(runs: Sequence[RunData]) -> list[str]:
    """The keys whose value is not the same in all runs, in the order of the configuration."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if len({_text(value_of(run, key)) for run in runs}) > 1]


def value_of(run: RunData, key: str) -> Any:
    """What a run has for a key; the default for one that came up after the run. Nothing in a list is None."""
    value = run.config[key] if key in run.config else _defaults().get(key)
    return None if value in ([], {}, MISSING) else value


@functools.cache
def _defaults() -> dict[str, Any]:
    return {key: known.default for key, known in known_keys().items()}


def is_of_method(key: str) -> bool:
    """Whether a key says what is learned and how."""
    return not any(key == part or key.startswith(part + ".") for part in NOT_METHOD)


def shown(value: Any) -> str:
    """A value of a configuration as a person writes it, without passwords in it; a dash where there is none."""
    if value in (None, [], {}, "", MISSING):
        return DASH
    return redacted(value if isinstance(value, str) else _text(value))


def _identity(run: RunData) -> str:
    keys = sorted(key for key in {*run.config, *_defaults()} if is_of_method(key))
    return _text({key: value for key in keys if (value := value_of(run, key)) is not None})


def _labels(firsts: Sequence[RunData]) -> list[str]:
    """One name per method: the algorithm, then the keys that tell those of one algorithm apart."""
    labels = []
    for run in firsts:
        name = algorithm_of(run)
        same = [other for other in firsts if algorithm_of(other) == name]
        keys = [key for key in differing_keys(same) if is_of_method(key)]
        words = [f"{key.rpartition('.')[2]} {shown(value_of(run, key))}" for key in keys[:NUM_KEYS_IN_LABEL]]
        labels.append(", ".join([name, *words]))
    numbers = [labels[: i + 1].count(label) for i, label in enumerate(labels)]
    return [
        label if number == 1 else f"{label} #{number}" for label, number in zip(labels, numbers, strict=True)
    ]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
