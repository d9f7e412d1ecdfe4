"""The keys of a suite file, and what must be true of one so that its comparison is fair.

A suite names a recipe that all runs share, models and methods as what differs from it, test sets, seeds, and
the tries by which each method's values are chosen. Refused: methods with unequal numbers of tries or of
prompt attempts (unless the method says why), a reported seed that was tuned on, a test set that was tuned on.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hpt_ray.config.load import load_as
from hpt_ray.config.schema import key, section
from hpt_ray.errors import UserError
from hpt_ray.evaluation.schema import EvaluateConfig
from hpt_ray.tools.suite.paper_tables import BY_NAME

T = TypeVar("T")
Settings = Mapping[str, Any]  # dotted key of a run's configuration → value


@dataclass
class MatrixKeys:
    """Which of the methods and models run, in the order of the tables."""

    methods: list[str] = key([], "Methods; all of `methods` where it is empty.")
    models: list[str] = key([], "Models; all of `models` where it is empty.")
    seeds: list[int] = key([], "Seeds of the reported runs.", minimum=0)


@dataclass
class SetKeys:
    """What the reported numbers are taken on."""

    test: dict[str, str] = key(
        {}, "Name → prompts; evaluated in training as `evaluation` of the recipe says."
    )
    in_distribution: list[str] = key([], "The sets of the first average.")
    out_of_distribution: list[str] = key([], "The sets of the second average.")


@dataclass
class SweepKeys:
    """How each method's values are chosen; without tries, the recipe's are used as they are."""

    tries: list[Any] = key([], "Settings to try for methods without tries of their own: `{key: value}` each.")
    seeds: list[int] = key([], "Seeds of the tries; none of them is reported.", minimum=0)
    sets: dict[str, str] = key({}, "Validation sets; none of them is a test set.")
    select_on: list[str] = key([], "The validation sets whose mean decides; all where it is empty.")


@dataclass
class FinalKeys:
    """Where the tables' scores come from, if not from the last evaluation in training: an evaluation of the
    finished models by `python -m hpt_ray.cli.evaluate`, on benchmarks that are the names of `sets.test`."""

    config: str | None = key(
        None, "Configuration of that program, for what is not here; relative to the suite file."
    )
    benchmarks: list[str] = key(
        [], "Benchmarks of the table of docs/evaluation.md; none: no such evaluation."
    )


@dataclass
class PassKeys(FinalKeys):
    """pass@k of the finished models, by the same program."""

    samples: int = key(64, "Responses per prompt, and the largest k.", minimum=1)
    temperature: float = key(1.0, "Sampling temperature.", minimum=0)
    top_p: float = key(1.0, "Nucleus.", minimum=0)
    methods: list[str] = key([], "Methods; all of the matrix where it is empty.")
    seeds: list[int] = key([], "Seeds; all of the matrix where it is empty.", minimum=0)
    base: bool = key(True, "Evaluate the model that training starts from too.")


@dataclass
class SuiteKeys:
    """A suite file."""

    PAGE: ClassVar[str] = "docs/reproduce.md"

    title: str = key("Reproduction", "Title of the report.")
    out: str = key("???", "Folder of runs, results.json, report.html and figures.")
    recipe: str = key("???", "The configuration that all runs share; relative to the suite file.")
    methods: dict[str, Any] = key({}, "Name → `title`, `config`, and more; see docs/reproduce.md.")
    models: dict[str, Any] = key({}, "Name → `title`, `config`, `recipe`.")
    reference: str = key("hpt", "The method that the others are compared with.")
    notes: list[str] = key([], "What a reader must know to read the tables; printed above them.")
    paper: dict[str, Any] = key(
        {},
        "Table of the paper (`table2`, `table3-llama`, `table3-1.5b`, `table4`, `table5`, `table6`) → models "
        "shown beside it.",
    )
    parallel: int = key(1, "Runs at the same time.", minimum=1)
    timeout_s: float = key(86400.0, "Limit for one run; then it counts as failed.", minimum=1)
    gpu_hour_price: float = key(2.0, "Dollars for an hour of one GPU, for what `--dry-run` says.", minimum=0)
    matrix: MatrixKeys = section(MatrixKeys)
    sets: SetKeys = section(SetKeys)
    sweep: SweepKeys = section(SweepKeys)
    final: FinalKeys = section(FinalKeys)
    pass_at_k: PassKeys = section(PassKeys)


@dataclass
class MethodKeys:
    """One method of a suite."""

    PAGE: ClassVar[str] = "docs/reproduce.md"

    title: str = key("???", "Name in tables and figures.")
    files: list[str] = key([], "Configurations put on top of the recipe; relative to the suite file.")
    config: dict[str, Any] = key({}, "What differs from the recipe and these files.")
    tries: list[Any] = key([], "Settings to try, instead of the suite's; as many.")
    tuned_as: str | None = key(None, "Takes the values chosen for this method: for ablations of it.")
    models: list[str] = key([], "Models it runs on; all where it is empty.")
    budget: str = key("", "Why its number of prompt attempts differs from that of the others.")


@dataclass
class ModelKeys:
    """One model of a suite."""

    PAGE: ClassVar[str] = "docs/reproduce.md"

    title: str = key("???", "Name in tables.")
    config: dict[str, Any] = key({}, "What differs from the recipe.")
    bases: dict[str, Any] = key(
        {},
        "Models of this kind that training starts from, drawn by chance: name → what differs. All are reported, each "
        "with all seeds, and averaged.",
    )
    tuning_bases: dict[str, Any] = key({}, "Further ones for the tries; none of them is reported.")
    recipe: str | None = key(None, "Replaces the suite's recipe; relative to the suite file.")


@dataclass(frozen=True)
class Suite:
    """A checked suite. `methods` and `models` are those of the matrix, in its order."""

    path: Path
    keys: SuiteKeys
    methods: Mapping[str, MethodKeys]
    models: Mapping[str, ModelKeys]

    @property
    def out(self) -> Path:
        return Path(self.keys.out)

    @property
    def seeds(self) -> list[int]:
        return self.keys.matrix.seeds

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(model, method) of the matrix, model by model."""
        for model in self.models:
            for name, method in self.methods.items():
                if not method.models or model in method.models:
                    yield model, name

    def tries(self, method: str) -> Sequence[Settings]:
        """The settings that are tried for a method; none where nothing is swept, or another's are taken."""
        keys = self.methods[method]
        return [] if keys.tuned_as else keys.tries or self.keys.sweep.tries

    def file(self, relative: str) -> Path:
        return self.path.parent / relative


def load_suite(path: str | os.PathLike[str], words: Sequence[str] = ()) -> Suite:
    """Read and check a suite file; `words` are `key=value`. Raises `UserError` for all that is wrong."""
    keys = load_as(SuiteKeys, path, list(words))

    def chosen(part: str, root: type[T]) -> dict[str, T]:
        table: Mapping[str, Any] = getattr(keys, part)
        names: Sequence[str] = getattr(keys.matrix, part)
        for name in names:
            if name not in table:
                near = difflib.get_close_matches(name, table, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else ""
                raise UserError(
                    f"`matrix.{part}` names {name}, which is not defined.{hint} There are: {', '.join(table)}."
                )
        return {
            name: load_as(root, None, [], base={f"{path}: {part}.{name}": table[name] or {}})
            for name in names or table
        }

    suite = Suite(Path(path), keys, chosen("methods", MethodKeys), chosen("models", ModelKeys))
    problems = [f"{path}: {problem}" for check in CHECKS for problem in check(suite)]
    if problems:
        raise UserError("\n".join(problems))
    return suite


# -- what must be true -----------------------------------------------------------------------------


def _is_complete(suite: Suite) -> Iterator[str]:
    keys = suite.keys
    if not suite.methods or not suite.models:
        yield "a suite needs `methods` and `models`."
    if not keys.matrix.seeds:
        yield "`matrix.seeds` is empty: name the seeds to report, such as [1, 2, 3]."
    if not keys.sets.test:
        yield "`sets.test` is empty: name what the numbers are taken on."
    if keys.reference not in suite.methods:
        yield f"`reference` is {keys.reference}, which is no method of the matrix."


def _names_are_known(suite: Suite) -> Iterator[str]:
    keys = suite.keys
    lists: dict[str, tuple[Iterable[Any], Iterable[Any]]] = {
        "sets.in_distribution": (keys.sets.in_distribution, keys.sets.test),
        "sets.out_of_distribution": (keys.sets.out_of_distribution, keys.sets.test),
        "final.benchmarks": (keys.final.benchmarks, keys.sets.test),
        "sweep.select_on": (keys.sweep.select_on, keys.sweep.sets),
        "pass_at_k.methods": (keys.pass_at_k.methods, suite.methods),
        "pass_at_k.seeds": (keys.pass_at_k.seeds, suite.seeds),
        "paper": (keys.paper, [*BY_NAME, "table4"]),
        **{f"paper.{table}": (models, keys.models) for table, models in keys.paper.items()},
    }
    for name, method in suite.methods.items():
        lists[f"methods.{name}.models"] = method.models, keys.models
        lists[f"methods.{name}.tuned_as"] = [method.tuned_as] if method.tuned_as else [], suite.methods
    for where, (names, known) in lists.items():
        for name in names:
            if name not in (listed := list(known)):
                yield f"`{where}` names {name}; known are {', '.join(map(str, listed))}."


def _tries_are_equal(suite: Suite) -> Iterator[str]:
    counts = {name: len(suite.tries(name)) for name, method in suite.methods.items() if not method.tuned_as}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"every method must have the same number of tries, but there are: {listed}."


def _sweep_is_separate(suite: Suite) -> Iterator[str]:
    sweep = suite.keys.sweep
    if not any(suite.tries(name) for name in suite.methods):
        return
    if not sweep.seeds or not sweep.sets:
        yield "tries need `sweep.seeds` and `sweep.sets`, the validation sets that decide."
    if tuned := set(sweep.seeds) & set(suite.seeds):
        yield f"seeds {sorted(tuned)} are tuned on and reported: use other ones in `sweep.seeds`."
    for name, model in suite.models.items():
        if model.tuning_bases and not model.bases:
            yield f"`models.{name}.tuning_bases` needs `bases`, the reported ones."
        if both := [base for base in model.tuning_bases if model.tuning_bases[base] in model.bases.values()]:
            yield f"`models.{name}`: {', '.join(both)} of `tuning_bases` is reported too: tune on other bases."
    if shared := set(sweep.sets.values()) & set(suite.keys.sets.test.values()):
        yield f"{', '.join(sorted(shared))} decide about values and are reported: tune on other prompts."


def _evaluations_can_be_read(suite: Suite) -> Iterator[str]:
    for name in (suite.keys.final.config, suite.keys.pass_at_k.config):
        if name is not None:
            try:
                load_as(EvaluateConfig, suite.file(name), ["model=-"])
            except UserError as error:
                yield str(error)


CHECKS = (_is_complete, _names_are_known, _tries_are_equal, _sweep_is_separate, _evaluations_can_be_read)
