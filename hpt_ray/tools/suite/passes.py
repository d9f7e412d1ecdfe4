"""Evaluations of finished models: which there are to be, which are done, and pass@k prompt by prompt.

Two kinds, both `python -m hpt_ray.cli.evaluate` on a run's last checkpoint: `final`, whose scores are the tables',
and pass@k. The name of an evaluation's folder holds what was asked, so that another number of samples is
another evaluation; within it, that program goes on where it was. Its configuration is written into the output
folder first, for a job may run where the suite file is not.

`read_passes` gives, for each (model, method), the chance per prompt that one of k samples is correct, run by run, so
that two methods are compared on the same prompts, bases and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf

from hpt_ray.config import renamed
from hpt_ray.errors import UserError
from hpt_ray.evaluation.mixed import PerPrompt, Unit, paired
from hpt_ray.evaluation.model import as_trained
from hpt_ray.evaluation.results import PROMPTS, read_results
from hpt_ray.evaluation.statistics import Difference
from hpt_ray.tools.report import chances
from hpt_ray.tools.suite.jobs import Job
from hpt_ray.tools.suite.matrix import Pair, RunSpec
from hpt_ray.tools.suite.suite import Suite

BASE = "base"  # in the place of a method: the model before training
FINAL, PASS = "final", "pass@k"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. `out` holds results.json and prompts.parquet when done.

    `keys`: what is asked of whom, on top of `config`, a file beside the suite's. `asked_as`: the run that tells
    how the base is asked, which has no `seed`; what a run has trained says so itself.
    """

    kind: str
    model: str
    method: str
    seed: int | None
    out: Path
    keys: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    asked_as: RunSpec | None = None
    base: str = ""  # of a model that has several

    @property
    def id(self) -> str:
        of_base = self.base and f".{self.base}"
        return f"{self.kind} {self.model}.{self.method}{of_base}" + (
            "" if self.seed is None else f".s{self.seed}"
        )

    @property
    def is_done(self) -> bool:
        return (self.out / "results.json").is_file() and renamed.existing(self.out / PROMPTS).is_file()

    @property
    def file(self) -> Path:
        """Its configuration."""
        return self.out.parents[1] / "configs" / f"{self.out.name}.yaml"

    def job(self, logs: Path) -> Job:
        words = ("hpt_ray.cli.evaluate", "--config", str(self.file), f"out={self.out}")
        return Job(self.id, words, logs / f"{self.out.name}.log", str(self.out))

    def write_configuration(self) -> None:
        """`file`, and those that it builds on: how the base is asked, and a copy of `config`."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        layers: list[str] = []
        if self.asked_as:
            layers.append(f"{self.file.stem}-asked.yaml")
            _write(self.file.with_name(layers[-1]), as_trained(self.asked_as.config))
        if self.config:
            layers.append(f"{self.file.stem}-shared.yaml")
            _copy(self.config, self.file.with_name(layers[-1]))
        _write(self.file, {"defaults": layers, **self.keys})


def evaluations_of(suite: Suite, runs: Sequence[RunSpec], folders: Mapping[str, Path]) -> list[Evaluation]:
    """The evaluations that the suite asks for, of the runs that are done, and of the models they began from."""
    final, passes, parent = suite.keys.final, suite.keys.pass_at_k, suite.out.absolute() / "evaluations"
    sampling = {name: getattr(passes, name) for name in ("samples", "temperature", "top_p")}
    tag = f"k{passes.samples}-T{passes.temperature:g}-p{passes.top_p:g}"
    methods, seeds = passes.methods or list(suite.methods), passes.seeds or suite.seeds
    found = []
    for kind, keys, asked, name in ((FINAL, final, {}, FINAL), (PASS, passes, sampling, tag)):
        if not keys.benchmarks:
            continue
        ending = f"-{name}-{'+'.join(keys.benchmarks)}"
        asked = {"benchmarks": list(keys.benchmarks), **asked}
        config = suite.file(keys.config) if keys.config else None
        seen: set[tuple[str, str]] = set()
        for run in runs:
            if (run.model, run.base) not in seen and (kind == FINAL or passes.base):
                seen.add((run.model, run.base))
                before = {"model": run.config.model.path, **asked}
                out = parent / f"{run.model}.{BASE}{run.base and f'.{run.base}'}{ending}"
                found.append(Evaluation(kind, run.model, BASE, None, out, before, config, run, run.base))
            if run.id in folders and (kind == FINAL or (run.method in methods and run.seed in seeds)):
                root = folders[run.id]
                trained = {"model": str(root), **asked}
                out = parent / f"{root.name}{ending}"
                found.append(Evaluation(kind, *run.pair, run.seed, out, trained, config, base=run.base))
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    """A configuration, and beside it those that it builds on."""
    content = cast(DictConfig, OmegaConf.load(path))
    for number, name in enumerate(content.get("defaults") or []):
        below = to.with_stem(f"{to.stem}-{number + 1}")
        _copy(path.parent / name, below)
        content.defaults[number] = below.name
    OmegaConf.save(content, to)


# -- pass@k --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Solved:
    """One method on one model. `runs`: chances [K, Q] of each run, a benchmark each. `asked`: which prompts those
    are, by `reference_hash`. The model before training has one run, of seed 0."""

    ks: tuple[int, ...]
    runs: Mapping[Unit, Sequence[np.ndarray]]
    asked: Mapping[str, tuple[str, ...]]
    is_base: bool = False

    def means(self) -> dict[int, float]:
        """pass@k for every k, each benchmark weighing the same."""
        values = np.mean([[of_one.mean(axis=1) for of_one in run] for run in self.runs.values()], axis=(0, 1))
        return {k: float(value) for k, value in zip(self.ks, values, strict=True)}

    def minus(self, other: Solved, k: int) -> Difference | None:
        """The difference of pass@k over the bases and seeds that both have; None where asked other prompts."""
        if self.ks != other.ks or self.asked != other.asked:
            return None
        at = self.ks.index(k)
        a, b = ({unit: [of[at] for of in run] for unit, run in side.runs.items()} for side in (self, other))
        theirs: Mapping[Unit, PerPrompt] = (
            {unit: b[unit[0], 0] for unit in a if (unit[0], 0) in b} if other.is_base else b
        )
        return paired(a, theirs)


Passes = Mapping[Pair, Solved]


def read_passes(evaluations: Sequence[Evaluation]) -> Passes:
    """What the finished evaluations say, a method's seeds together. UserError where not all were asked the same."""
    found: dict[Pair, list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.kind == PASS and evaluation.is_done:
            found.setdefault((evaluation.model, evaluation.method), []).append(evaluation)
    return {pair: _solved(of_pair) for pair, of_pair in found.items()}


def _solved(evaluations: Sequence[Evaluation]) -> Solved:
    found: dict[Unit, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    asked: dict[str, tuple[str, ...]] = {}
    for evaluation in evaluations:
        of_run = found[evaluation.base or evaluation.model, evaluation.seed or 0] = {}
        for name, of_benchmark in groupby(read_results(evaluation.out), attrgetter("benchmark")):
            rows = sorted(of_benchmark, key=attrgetter("prompt_id"))
            prompts = tuple(row.reference_hash for row in rows)
            if asked.setdefault(name, prompts) != prompts:
                raise UserError(
                    f"{evaluation.out}: the prompts of {name} are not those that {evaluations[0].out} was asked. "
                    "Move the folder that is out of date away and run the suite again."
                )
            of_run[name] = chances(rows)
    ks = min((ks for of_run in found.values() for ks, _ in of_run.values()), key=len)
    runs = {unit: [of_run[name][1][: len(ks)] for name in asked] for unit, of_run in found.items()}
    return Solved(tuple(int(k) for k in ks), runs, asked, evaluations[0].method == BASE)
