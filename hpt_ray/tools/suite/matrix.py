"""From a suite to its runs: each with an id, a whole configuration, and its place in the tables.

A configuration is the recipe, then the model's part, the method's part, the chosen or tried settings, and
last the seed and the prompt sets. Pure but for reading the recipe. All methods must attempt equally many
prompts; what attempts more or fewer says why, and the report repeats it.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from hpt_ray.config.checks import check_config
from hpt_ray.config.load import known_keys, load_as, load_config, steps_of_phases
from hpt_ray.config.phases import phases_of
from hpt_ray.config.schema import Config
from hpt_ray.driver.setup import choices_of
from hpt_ray.errors import UserError
from hpt_ray.tools.report.load import flat_keys
from hpt_ray.tools.suite.suite import Settings, Suite
from hpt_ray.utils import plugins

Pair = tuple[str, str]  # model, method


@dataclass(frozen=True)
class RunSpec:
    """One run. Example: `RunSpec("t.hpt.s1", "t", "hpt", 1, config)`; a try is `t.hpt.try2.s100`."""

    id: str
    model: str
    method: str
    seed: int
    config: Config
    settings: Settings = field(default_factory=dict)  # chosen, or tried
    number: int | None = None  # of the try; None: a reported run

    @property
    def attempts(self) -> int:
        """Prompt attempts, with repetition: steps × prompts, over all phases."""
        phases = (phase.config for phase in phases_of(self.config))
        return sum(config.run.steps * config.prompts_per_step for config in phases)


def sweep_runs(suite: Suite, wanted: Sequence[Pair]) -> list[RunSpec]:
    """The tries that the wanted pairs depend on."""
    tuned = dict.fromkeys((model, suite.methods[method].tuned_as or method) for model, method in wanted)
    return [
        run
        for model, method in tuned
        for number, settings in enumerate(suite.tries(method), start=1)
        for run in _runs(suite, model, method, suite.keys.sweep.seeds, settings, number)
    ]


def reported_runs(suite: Suite, chosen: Mapping[Pair, Settings]) -> list[RunSpec]:
    """The runs of the tables. `chosen`: settings by (model, method); a pair that is missing does not run."""
    runs = []
    for model, method in suite.pairs():
        settings = chosen.get((model, suite.methods[method].tuned_as or method))
        if settings is not None:
            runs += _runs(suite, model, method, suite.seeds, settings)
    check_budgets(suite, runs)
    return runs


def untuned(suite: Suite) -> dict[Pair, Settings]:
    """What stands for the choice before there is one: the first try, or the recipe as it is."""
    return {
        (model, method): next(iter(suite.tries(method)), {})
        for model, method in suite.pairs()
        if suite.methods[method].tuned_as is None
    }


def matching(runs: Sequence[RunSpec], patterns: Sequence[str]) -> list[RunSpec]:
    """Those whose id one of the shell patterns fits; all without patterns. UserError where one fits none."""
    for pattern in patterns:
        if not fnmatch.filter([run.id for run in runs], pattern):
            raise UserError(f"--only {pattern} fits no run. Their names are like {runs[0].id}.")
    return [run for run in runs if not patterns or any(fnmatch.fnmatch(run.id, p) for p in patterns)]


def check_budgets(suite: Suite, runs: Sequence[RunSpec]) -> None:
    """Raise `UserError` where methods of a model attempt unequally many prompts and none says why."""
    for model in suite.models:
        attempts = {
            run.method: run.attempts
            for run in runs
            if run.model == model and not suite.methods[run.method].budget
        }
        if len(set(attempts.values())) > 1:
            listed = ", ".join(f"{method} {count:,}" for method, count in attempts.items())
            raise UserError(
                f"{suite.path}: on {model} the methods attempt unequally many prompts: {listed}. Make "
                "run.steps × prompts_per_step equal, or say why in the method's `budget`."
            )


def _runs(
    suite: Suite, model: str, method: str, seeds: Sequence[int], settings: Settings, number: int | None = None
) -> list[RunSpec]:
    """One run a seed."""
    shared = _config(suite, model, method, settings)
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
    runs = []
    for seed in seeds:
        name = f"{model}.{method}" + (f".try{number}" if number else "") + f".s{seed}"
        config = copy.deepcopy(shared)
        config.run.name, config.run.seed = name, seed
        runs.append(RunSpec(name, model, method, seed, config, dict(settings), number))
    return runs


def _config(suite: Suite, model: str, method: str, settings: Settings) -> Config:
    keys = suite.models[model]
    path = suite.file(keys.recipe or suite.keys.recipe)
    layers: dict[str, dict[str, Any]] = {
        str(path): _recipe(path),
        f"{suite.path}: models.{model}": keys.config,
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
    values = {name: attrgetter(name)(config) for name in known_keys()}
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
    return flat_keys(asdict(config))
