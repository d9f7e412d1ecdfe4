"""Evaluations of finished models: which there are to be, and which are done.

Two kinds, both `python -m hpt_ray.cli.evaluate` on a run's last checkpoint: `final`, whose scores are the tables',
and pass@k. The name of an evaluation's folder holds what was asked, so that another number of samples is
another evaluation; within it, that program goes on where it was. Its configuration is copied into the output
folder first, for a job may run where the suite file is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf

from hpt_ray.evaluation.model import as_trained
from hpt_ray.evaluation.results import PROMPTS
from hpt_ray.tools.suite.jobs import Job
from hpt_ray.tools.suite.matrix import RunSpec
from hpt_ray.tools.suite.suite import Suite

BASE = "base"  # in the place of a method: the model before training
FINAL, PASS = "final", "pass@k"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. `seed` is None of the base. `out` holds results.json and prompts.parquet when done."""

    kind: str
    model: str
    method: str
    seed: int | None
    out: Path
    words: tuple[str, ...]

    @property
    def id(self) -> str:
        seed = "" if self.seed is None else f".s{self.seed}"
        return f"{self.kind} {self.model}.{self.method}{seed}"

    @property
    def is_done(self) -> bool:
        return (self.out / "results.json").is_file() and (self.out / PROMPTS).is_file()

    def job(self, logs: Path) -> Job:
        words = ("hpt_ray.cli.evaluate", *self.words, f"out={self.out}")
        return Job(self.id, words, logs / f"{self.out.name}.log", str(self.out))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is asked of whom. `tag` goes into the folder's name; `config` is beside the suite file."""

    name: str
    tag: str
    config: Path | None
    words: tuple[str, ...]
    methods: Sequence[str]
    seeds: Sequence[int]
    base: bool


def evaluations_of(suite: Suite, runs: Sequence[RunSpec], folders: Mapping[str, Path]) -> list[Evaluation]:
    """The evaluations that the suite asks for, of the runs that are done, and of the models they began from."""
    return [evaluation for kind in _kinds(suite) for evaluation in _evaluations(suite, kind, runs, folders)]


def _kinds(suite: Suite) -> Iterator[_Kind]:
    final, passes, everything = suite.keys.final, suite.keys.pass_at_k, list(suite.methods)
    if final.benchmarks:
        names = ",".join(final.benchmarks)
        path, tag = _path(suite, final.config), f"final-{names.replace(',', '+')}"
        yield _Kind(FINAL, tag, path, (f"benchmarks=[{names}]",), everything, suite.seeds, base=True)
    if passes.benchmarks:
        names = ",".join(passes.benchmarks)
        words = (
            f"benchmarks=[{names}]",
            f"samples={passes.samples}",
            f"temperature={passes.temperature:g}",
            f"top_p={passes.top_p:g}",
        )
        tag = f"k{passes.samples}-T{passes.temperature:g}-p{passes.top_p:g}-{names.replace(',', '+')}"
        methods, seeds = passes.methods or everything, passes.seeds or suite.seeds
        yield _Kind(PASS, tag, _path(suite, passes.config), words, methods, seeds, base=passes.base)


def _path(suite: Suite, name: str | None) -> Path | None:
    return suite.file(name) if name else None


def _copy_of(suite: Suite, kind: _Kind) -> Path | None:
    return _configs(suite) / f"{kind.name.replace('@', '-')}.yaml" if kind.config else None


def _copy(path: Path, to: Path) -> None:
    """A configuration, and beside it those that it builds on."""
    content = cast(DictConfig, OmegaConf.load(path))
    for number, name in enumerate(content.get("defaults") or []):
        below = to.with_stem(f"{to.stem}-{number + 1}")
        _copy(path.parent / name, below)
        content.defaults[number] = below.name
    OmegaConf.save(content, to)


def _configs(suite: Suite) -> Path:
    return suite.out.absolute() / "configs"


def _base_file(suite: Suite, kind: _Kind, run: RunSpec) -> Path:
    return _configs(suite) / f"{run.model}.{BASE}-{kind.name.replace('@', '-')}.yaml"


def write_configurations(suite: Suite, runs: Sequence[RunSpec]) -> None:
    """What the evaluations read: copies of the suite's configurations, and how the models before training are
    asked: as their runs are, which evaluations of runs find by themselves."""
    _configs(suite).mkdir(parents=True, exist_ok=True)
    for kind in _kinds(suite):
        copy = _copy_of(suite, kind)
        if kind.config and copy:
            _copy(kind.config, copy)
        for run in {run.model: run for run in runs}.values():
            path = _base_file(suite, kind, run)
            as_runs = path.with_name(f"{run.model}.{BASE}.yaml")
            as_runs.write_text(yaml.safe_dump(as_trained(run.config), allow_unicode=True), encoding="utf-8")
            layers = [str(layer) for layer in (as_runs, copy) if layer]
            path.write_text(yaml.safe_dump({"defaults": layers}, allow_unicode=True), encoding="utf-8")


def _evaluations(
    suite: Suite, kind: _Kind, runs: Sequence[RunSpec], folders: Mapping[str, Path]
) -> Iterator[Evaluation]:
    parent = suite.out.absolute() / "evaluations"
    begun: set[str] = set()
    for run in runs:
        if run.model not in begun and kind.base:
            begun.add(run.model)
            out = parent / f"{run.model}.{BASE}-{kind.tag}"
            words = (
                "--config",
                str(_base_file(suite, kind, run)),
                f"model={run.config.model.path}",
                *kind.words,
            )
            yield Evaluation(kind.name, run.model, BASE, None, out, words)
        if run.method in kind.methods and run.seed in kind.seeds and run.id in folders:
            out = parent / f"{folders[run.id].name}-{kind.tag}"
            copy = _copy_of(suite, kind)
            words = (*(["--config", str(copy)] if copy else []), f"model={folders[run.id]}", *kind.words)
            yield Evaluation(kind.name, run.model, run.method, run.seed, out, words)
