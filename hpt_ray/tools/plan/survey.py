"""The plan of a run from its files, and what `--dry-run` checks.

A dry run does everything `prepare` does with what is on this machine, and lists what is not. It uses no network
and needs neither a GPU nor the model. Whatever is here is read and checked as for a real start, and a mistake in
it is an error; a file, a model or its tokenizer that is not here is named. A real start goes through `prepare`
alone, which refuses what is missing.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.schema import Config
from hpt_ray.data.benchmarks import BENCHMARKS
from hpt_ray.data.mini import is_mini
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.setup import Prepared, check_choices, loader, prepare
from hpt_ray.tools.plan.cost import DataFacts
from hpt_ray.tools.plan.make import Plan, check_plan, make_plan
from hpt_ray.tools.plan.memory import GIB
from hpt_ray.tools.plan.shape import find_shape, local_folder


def plan_run(config: Config, prepared: Prepared | None) -> Plan:
    """The plan of this run. Raises `UserError` where it cannot fit.

    Host memory is compared with this machine's where the run is for this machine alone.
    """
    shape = find_shape(config.model, config.model.path)
    plan = make_plan(config, shape, facts_of(config, prepared))
    is_local = config.cluster.address == "local"
    check_plan(config, plan, host_gib=psutil.virtual_memory().total / GIB if is_local else None)
    return plan


def survey(config: Config) -> tuple[Prepared | None, list[str]]:
    """The prepared run; or None, and a line for everything that is not on this machine.

    Raises `UserError` for everything else that the user must change.
    """
    folder = local_folder(tokenizer_path(config.model.path))
    training = {
        path: GATES[gate].demonstrations
        for phase, _, gate, _ in check_choices(config)
        for path in phase.config.data.train
    }
    sets = config.evaluation.sets
    absent = [f"data.train: {path} is not here" for path in training if not _is_here(path)]
    absent += [
        f"evaluation.sets.{name}: {path} is not here" for name, path in sets.items() if not _is_here(path)
    ]
    if folder is None:
        absent.insert(
            0,
            f"model.path: {config.model.path} is no folder here and not in the Hub's cache; so neither its "
            "tokenizer nor what needs it was checked: template, end token, lengths of the prompts",
        )
    elif not absent:
        return prepare(config, str(folder)), []
    else:
        _, load = loader(config, str(folder))
        for path, demonstrations in training.items():
            if _is_here(path):
                load([path], demonstrations=demonstrations)
        for path in filter(_is_here, sets.values()):
            load([path], demonstrations="optional")
    return None, absent


def _is_here(path: str) -> bool:
    return is_mini(path) or Path(path).expanduser().exists()


def facts_of(config: Config, prepared: Prepared | None) -> DataFacts:
    """Lengths and counts for the cost. Of a set that is not here, the number of prompts it is published with."""
    published = {
        name: max(BENCHMARKS[name].published, default=0)
        for name in config.evaluation.sets
        if name in BENCHMARKS
    }
    if prepared is None:
        return DataFacts(evaluation_prompts=published)
    last = prepared.phases[-1].prompts.report()
    eval_sets = {name: len(prompts) for name, prompts in prepared.eval_sets.items()}
    return DataFacts(
        demonstration_tokens=float(last["demonstration_tokens_mean"]) or None,
        prompt_tokens=float(last["prompt_tokens_mean"]) or None,
        evaluation_prompts=eval_sets,
    )
