"""Evaluations of finished models: which there are to be, and which are done.

Two kinds, both `python -m hpt_ray.evaluate` on a run's last checkpoint: `final`, whose scores are the tables',
and pass@k. The name of an evaluation's folder holds what was asked, so that another number of samples is
another evaluation; within it, that program goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpt_ray.evaluation.results import QUESTIONS
from hpt_ray.reproduce.jobs import Job
from hpt_ray.reproduce.matrix import RunSpec
from hpt_ray.reproduce.suite import Suite

BASE = "base"  # in the place of a method: the model before training
FINAL, PASS = "final", "pass@k"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. `seed` is None of the base. `out` holds results.json and questions.parquet when done."""

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
        return (self.out / "results.json").is_file() and (self.out / QUESTIONS).is_file()

    def job(self, logs: Path) -> Job:
        words = ("hpt_ray.evaluate", *self.words, f"out={self.out}")
        return Job(self.id, words, logs / f"{self.out.name}.log", str(self.out))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is asked of whom. `tag` goes into the folder's name."""

    name: str
    tag: str
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
        words = (*_file(suite, final.config), f"benchmarks=[{names}]")
        yield _Kind(FINAL, f"final-{names.replace(',', '+')}", words, everything, suite.seeds, base=True)
    if passes.benchmarks:
        names = ",".join(passes.benchmarks)
        words = (
            *_file(suite, passes.config),
            f"benchmarks=[{names}]",
            f"samples={passes.samples}",
            f"temperature={passes.temperature:g}",
            f"top_p={passes.top_p:g}",
        )
        tag = f"k{passes.samples}-T{passes.temperature:g}-p{passes.top_p:g}-{names.replace(',', '+')}"
        methods, seeds = passes.methods or everything, passes.seeds or suite.seeds
        yield _Kind(PASS, tag, words, methods, seeds, base=passes.base)


def _file(suite: Suite, name: str | None) -> tuple[str, ...]:
    return ("--config", str(suite.file(name).absolute())) if name else ()


def _evaluations(
    suite: Suite, kind: _Kind, runs: Sequence[RunSpec], folders: Mapping[str, Path]
) -> Iterator[Evaluation]:
    parent = suite.out.absolute() / "evaluations"
    begun: set[str] = set()
    for run in runs:
        if run.model not in begun and kind.base:
            begun.add(run.model)
            out = parent / f"{run.model}.{BASE}-{kind.tag}"
            words = (f"model={run.config.model.path}", *kind.words)
            yield Evaluation(kind.name, run.model, BASE, None, out, words)
        if run.method in kind.methods and run.seed in kind.seeds and run.id in folders:
            out = parent / f"{folders[run.id].name}-{kind.tag}"
            words = (f"model={folders[run.id]}", *kind.words)
            yield Evaluation(kind.name, run.model, run.method, run.seed, out, words)
