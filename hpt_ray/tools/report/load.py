"""From a run folder to plain tables: configuration, metrics, attempts of prompts, finished evaluations.

In: the folder of a run that is done, still going or was killed. Out: `RunData`. What a run has not written
is empty, not an error; only a folder that is no run is. Nothing is written, and `latest` stays where it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hpt_ray.config import renamed
from hpt_ray.errors import UserError
from hpt_ray.evaluation.results import PROMPTS, PromptResult, read_results
from hpt_ray.observe.data_card import DataCard
from hpt_ray.observe.metrics import branch_of
from hpt_ray.observe.run_folder import RunFolder, read_json_lines
from hpt_ray.types import Decision
from hpt_ray.utils.names import dotted

Results = dict[str, list[PromptResult]]


@dataclass(frozen=True, slots=True)
class Series:
    """One metric over a run: where it has a value. `steps` [N] int, `values` [N] float, all finite."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, steps: np.ndarray, missing: float = 0.0) -> np.ndarray:
        """The values at other steps [M], ascending; `missing` at those where there is none."""
        values = np.full(len(steps), missing)
        _, here, there = np.intersect1d(steps, self.steps, return_indices=True)
        values[here] = self.values[there]
        return values


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of prompt_history.jsonl: what a prompt came to at a step. `rollouts` counts aborted ones too."""

    step: int
    prompt_id: str
    correct: int
    rollouts: int
    reason: str
    rollout_weight: float
    demo_weight: float
    aborted: int = 0  # older files do not say

    @property
    def solve_rate(self) -> float:
        """Share of the graded rollouts that are correct; NaN where none was graded."""
        graded = self.rollouts - self.aborted
        return self.correct / graded if graded > 0 else math.nan

    @property
    def branch(self) -> str:
        """What it trained on: see `observe.metrics.branch_of`."""
        weights = self.rollout_weight, self.demo_weight
        return branch_of(Decision(*weights, self.correct, self.rollouts, self.reason))


@dataclass(frozen=True)
class RunData:
    """What a run folder says. `config` has flat keys: `run.config["algorithm.name"]`."""

    root: Path
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]] = ()
    attempts: Sequence[Attempt] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    results: Results = field(default_factory=dict)  # by benchmark, of the finished model
    data_card: DataCard = DataCard()  # older runs have none

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def seed(self) -> int | None:
        return self.config.get("run.seed")

    @property
    def num_steps(self) -> int:
        """Steps done."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def state(self) -> str:
        """`done`, or `not finished`: the folder cannot tell a run that goes on from one that was killed."""
        is_done = self.summary and self.num_steps >= self.config.get("run.steps", 0)
        return "done" if is_done else "not finished"

    @cached_property
    def names(self) -> list[str]:
        """The metrics that have a value somewhere, in the order of the lines."""
        return list(dict.fromkeys(k for line in self.lines for k, v in line.items() if _is_number(v)))

    def series(self, name: str) -> Series:
        """Where `name` has a value; empty where it never has."""
        points = [(line["step"], line[name]) for line in self.lines if _is_number(line.get(name))]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return Series(np.array(steps, int), np.array(values, float))

    def matching(self, pattern: str) -> dict[str, Series]:
        """The series whose whole name matches, by the first group: `matching(r"eval/(.+)/mean")`."""
        found = {name: m[1] for name in self.names if (m := re.fullmatch(pattern, name))}
        return {key: self.series(name) for name, key in found.items()}

    def evaluations(self) -> dict[str, Series]:
        """`eval/<set>/mean` by set."""
        return self.matching(r"eval/(.+)/mean")

    @property
    def wall_s(self) -> float:
        """Seconds of the run; of one that is not finished, of its steps, evaluations and checkpoints."""
        parts = ("time/step_s", "time/evaluation_s", "time/checkpoint_s")
        return float(self.summary.get("wall_s") or sum(self.series(name).values.sum() for name in parts))

    @property
    def tokens_sampled(self) -> int:
        """Tokens of the graded rollouts."""
        graded = self.matching("reward/outcome/(.+)").values()
        length = self.series("rollout/length_mean")
        return round(sum(float(length.values @ of_outcome.at(length.steps)) for of_outcome in graded))

    @property
    def tokens_trained(self) -> int:
        """Tokens that went through the learner, prompts included."""
        rate, seconds = self.series("learner/tokens_per_s"), self.series("time/learner_s")
        return round(float(rate.values @ seconds.at(rate.steps)))


def load_run(path: str | Path, evaluations: Sequence[Path] = ()) -> RunData:
    """Read a run folder, and the evaluations of its model: those given and those in its `evaluation*` folders.

    Raises `UserError` where `path` is no run folder, or a file of it cannot be read.
    """
    folder = RunFolder(Path(path).resolve())
    if not folder.config.is_file():
        raise UserError(f"{path}: not a run folder (no config.yaml in it). Give the folder of a run.")
    try:
        config = renamed.config(yaml.safe_load(folder.config.read_text(encoding="utf-8")) or {})
        summary, data_card = _json(folder.summary), DataCard.from_json(_json(folder.data_card))
        attempts = [_attempt(line) for line in read_json_lines(folder.prompt_history)]
        lines = folder.read_metrics()
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: a file of the run cannot be read: {error}") from error
    results: Results = {}
    for file in [*evaluations_in(folder.root), *evaluations]:
        for row in read_results(file):
            results.setdefault(row.benchmark, []).append(row)
    return RunData(folder.root, flat_keys(config), lines, attempts, summary, results, data_card)


def flat_keys(nested: Mapping[str, Any]) -> dict[str, Any]:
    """`{"run": {"seed": 1}}` as `{"run.seed": 1}`. A dict without keys is None."""
    return {name: None if value == {} else value for name, value in dotted(nested).items()}


def _attempt(line: Mapping[str, Any]) -> Attempt:
    """What else a line says is not needed here."""
    line = renamed.fields(line)
    return Attempt(**{field.name: line[field.name] for field in fields(Attempt) if field.name in line})


def evaluations_in(root: Path) -> list[Path]:
    """The folders of finished evaluations that lie in a run's."""
    folders = {*root.glob("evaluation*"), *root.glob("evaluation*/*")}
    return sorted(folder for folder in folders if is_evaluation(folder))


def is_evaluation(folder: Path) -> bool:
    return renamed.existing(folder / PROMPTS).is_file()


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
