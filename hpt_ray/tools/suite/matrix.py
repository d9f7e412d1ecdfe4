"""From a suite to its runs: each with an id, a whole configuration, and its place in the tables.

A configuration is the recipe, then the model's part, the method's part, the chosen or tried settings, and
last the seed and the prompt sets. All methods must attempt equally many prompts; what attempts more or fewer
says why, and the report repeats it.

`choose` takes each method's values from its finished tries: the best mean on the validation sets, and of
equals the one that the suite lists first. A try of which a run failed has no score; where no try has one,
there is no choice, and the method does not run.
"""

from __future__ import annotations

import copy
import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from hpt_ray.config.checks import check_config
from hpt_ray.config.load import known_keys, load_as, load_config, steps_of_phases
from hpt_ray.config.phases import phases_of
from hpt_ray.config.references import written
from hpt_ray.config.schema import Config
from hpt_ray.driver.setup import choices_of
from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report.load import flat_keys
from hpt_ray.tools.suite.suite import Settings, Suite
from hpt_ray.utils import plugins

Pair = tuple[str, str]  # model, method


@dataclass(frozen=True)
class RunSpec:
    """One run. Example: `RunSpec("t.hpt.s1", "t", "hpt", 1, config)`; a try is `t.hpt.try2.s100`, and one of a model
    with several bases `t.hpt.BASE.s1`."""

    id: str
    model: str
    method: str
    seed: int
    config: Config
    settings: Settings = field(default_factory=dict)  # chosen, or tried
    number: int | None = None  # of the try; None: a reported run
    base: str = ""  # of a model that has several

    @property
    def pair(self) -> Pair:
        return self.model, self.method

    @property
    def attempts(self) -> int:
        """Prompt attempts, with repetition: steps × prompts, over all phases."""
        phases = (phase.config for phase in phases_of(self.config))
        return sum(config.run.steps * config.prompts_per_step for config in phases)


@dataclass(frozen=True, slots=True)
class Try:
    """One setting and its mean over validation sets and seeds; None where a run of it is missing."""

    settings: Settings
    score: float | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The tries of a method on a model, in the order of the suite, and the one that was chosen."""

    tries: Sequence[Try]
    chosen: int

    @property
    def settings(self) -> Settings:
        return self.tries[self.chosen].settings

    @property
    def at_edge(self) -> list[str]:
        """Keys of which the lowest or highest value tried was best: a better one may lie beyond. Of two values one
        always is. A key of a list of phases is named with the number of the phase."""
        tried: dict[str, set[float]] = {}
        for each in self.tries:
            for name, value in _numbers(each.settings):
                tried.setdefault(name, set()).add(value)
        best = dict(_numbers(self.settings))
        return [n for n in best if len(tried[n]) > 1 and best[n] in (min(tried[n]), max(tried[n]))]


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in settings by their dotted keys: `phases.1.learner.learning_rate`."""
    if isinstance(value, Mapping | list):
        for part, inner in value.items() if isinstance(value, Mapping) else enumerate(value, 1):
            yield from _numbers(inner, f"{name}.{part}" if name else str(part))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def sweep_runs(suite: Suite, wanted: Sequence[Pair]) -> list[RunSpec]:
    """The tries that the wanted pairs depend on."""
    return [
        run
        for model, method in dict.fromkeys(tuned_pair(suite, pair) for pair in wanted)
        for number, settings in enumerate(suite.tries(method), start=1)
        for run in _runs(suite, model, method, settings, number)
    ]


def choose(suite: Suite, tries: Sequence[RunSpec], folders: Mapping[str, Path]) -> dict[Pair, Choice]:
    """The choices that the finished tries allow; `tries` as `sweep_runs` orders them, `folders` by their ids."""
    names = suite.keys.sweep.select_on or list(suite.keys.sweep.sets)
    choices = {}
    for pair, of_pair in groupby(tries, attrgetter("pair")):
        scored = []
        for _, seeds in groupby(of_pair, attrgetter("number")):
            runs = list(seeds)
            scores = [_validation_mean(folders[run.id], names) for run in runs if run.id in folders]
            scored.append(Try(runs[0].settings, fmean(scores) if len(scores) == len(runs) else None))
        if (choice := best_of(scored)) is not None:
            choices[pair] = choice
    return choices


def best_of(tries: Sequence[Try]) -> Choice | None:
    """The choice among tries; None where none has a score."""
    scored = [(-t.score, i) for i, t in enumerate(tries) if t.score is not None]
    return Choice(tries, min(scored)[1]) if scored else None


def _validation_mean(root: Path, names: Sequence[str]) -> float:
    """The mean over these sets of a finished run's last evaluation."""
    evaluations = json.loads(RunFolder(root).summary.read_text(encoding="utf-8"))["evaluations"]
    return fmean(evaluations[name]["last"]["mean"] for name in names)


def untuned(suite: Suite) -> dict[Pair, Settings]:
    """What stands for the choice before there is one: the first try, or the recipe as it is."""
    return {
        (model, method): next(iter(suite.tries(method)), {})
        for model, method in suite.pairs()
        if suite.methods[method].tuned_as is None
    }


def tuned_pair(suite: Suite, pair: Pair) -> Pair:
    """The pair whose values this one takes."""
    return pair[0], suite.methods[pair[1]].tuned_as or pair[1]


def reported_runs(suite: Suite, chosen: Mapping[Pair, Settings]) -> list[RunSpec]:
    """The runs of the tables. `chosen`: settings by (model, method); a pair that is missing does not run.

    Raises `UserError` where methods of a model attempt unequally many prompts and none says why.
    """
    runs: list[RunSpec] = []
    for pair in suite.pairs():
        settings = chosen.get(tuned_pair(suite, pair))
        if settings is not None:
            runs += _runs(suite, *pair, settings)
    for model in suite.models:
        of_model = [run for run in runs if run.model == model and not suite.methods[run.method].budget]
        attempts = {run.method: run.attempts for run in of_model}
        if len(set(attempts.values())) > 1:
            listed = ", ".join(f"{method} {count:,}" for method, count in attempts.items())
            raise UserError(
                f"{suite.path}: on {model} the methods attempt unequally many prompts: {listed}. Make "
                "run.steps × prompts_per_step equal, or say why in the method's `budget`."
            )
    return runs


def matching(runs: Sequence[RunSpec], patterns: Sequence[str]) -> list[RunSpec]:
    """Those whose id one of the shell patterns fits; all without patterns. UserError where one fits none."""
    for pattern in patterns:
        if not fnmatch.filter([run.id for run in runs], pattern):
            raise UserError(f"--only {pattern} fits no run. Their names are like {runs[0].id}.")
    return [run for run in runs if not patterns or any(fnmatch.fnmatch(run.id, p) for p in patterns)]


def _runs(
    suite: Suite, model: str, method: str, settings: Settings, number: int | None = None
) -> list[RunSpec]:
    """One run a seed and base: a reported one, or those of a try."""
    of_model = suite.models[model]
    bases: dict[str, Any] = (number and of_model.tuning_bases) or of_model.bases or {"": {}}
    seeds = suite.keys.sweep.seeds if number else suite.seeds
    runs = []
    for base, differs in bases.items():
        shared = _config(suite, model, differs, method, settings)
        shared.run.dir = str((suite.out / "runs").absolute())
        if number or not suite.keys.final.benchmarks:
            shared.evaluation.sets = dict(suite.keys.sweep.sets if number else suite.keys.sets.test)
        if number:  # only where a try ends decides
            shared.evaluation.every, shared.evaluation.before_training = 0, False
        try:
            plugins.load(shared.run.plugins)
            check_config(shared)
            choices_of(shared)
        except UserError as error:
            raise UserError(f"{suite.path}, {method} on {model}:\n{error}") from error
        for seed in seeds:
            name = (
                f"{model}.{method}"
                + (f".try{number}" if number else "")
                + (base and f".{base}")
                + f".s{seed}"
            )
            config = copy.deepcopy(shared)
            config.run.name, config.run.seed = name, seed
            runs.append(RunSpec(name, model, method, seed, config, dict(settings), number, base))
    return runs


def _config(suite: Suite, model: str, base: dict[str, Any], method: str, settings: Settings) -> Config:
    path = suite.file(suite.models[model].recipe or suite.keys.recipe)
    layers: dict[str, dict[str, Any]] = {
        str(path): _recipe(path),
        f"{suite.path}: models.{model}": suite.models[model].config,
        f"{suite.path}: a base of {model}": base,
        **{str(file): _part(file) for file in map(suite.file, suite.methods[method].files)},
        f"{suite.path}: methods.{method}": suite.methods[method].config,
        f"{suite.path}: a try of {method}": nested(settings),
    }
    config = load_as(Config, None, [], base=layers)
    if config.phases:
        config.run.steps = sum(steps_of_phases(config))
    return config


def _part(path: Path) -> dict[str, Any]:
    """The content of a file that is put on top of a recipe. Raises `UserError` where that cannot be."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or "defaults" in content:
        raise UserError(f"{path}: a file of `methods.….files` holds keys that differ, and no `defaults`.")
    return cast(dict[str, Any], content)


@cache
def _recipe(path: Path) -> dict[str, Any]:
    """What a recipe sets that is not the schema's default."""
    config = load_config(path, [])
    values = {name: written(attrgetter(name)(config)) for name in known_keys()}
    return nested({name: value for name, value in values.items() if value != known_keys()[name].default})


def nested(flat: Settings) -> dict[str, Any]:
    """`{"a.b": 1, "a.c": 2}` as `{"a": {"b": 1, "c": 2}}`; what is nested already stays."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def flat(config: Config) -> dict[str, Any]:
    """Every key of a configuration by its full name."""
    return flat_keys(written(config))
