"""The plan of a run from its files, and what `--dry-run` checks.

A dry run does everything `prepare` does with what is on this machine, and lists what is not. It uses no network
and needs neither a GPU nor the model. Whatever is here is read and checked as for a real start, and a mistake in
it is an error; a file, a model or its tokenizer that is not here is named. A real start goes through `prepare`
alone, which refuses what is missing.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from hpt_ray.config.schema import Config
from hpt_ray.data.benchmarks import BENCHMARKS
from hpt_ray.data.mini import is_mini
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.setup import Prepared, asked_of, check_choices, loader, prepare
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
    files = [
        ("data.train", path, asked_of(phase.config, gate))
        for phase, _, gate, _ in check_choices(config)
        for path in phase.config.data.train
    ]
    files += [
        (f"evaluation.sets.{name}", path, asked_of(config, None))
        for name, path in config.evaluation.sets.items()
    ]
    here = {path: is_mini(path) or Path(path).expanduser().exists() for _, path, _ in files}
    absent = list(dict.fromkeys(f"{key}: {path} is not here" for key, path, _ in files if not here[path]))
    folder = local_folder(tokenizer_path(config.model.path))
    if folder is None:
        model = (
            f"model.path: {config.model.path} is no folder here and not in the Hub's cache; so neither its "
            "tokenizer nor what needs it was checked: template, end token, lengths of the prompts"
        )
        return None, [model, *absent]
    if not absent:
        return prepare(config, str(folder)), []
    _, load = loader(config, str(folder))
    for _, path, asked in files:
        if here[path]:
            load([path], **asked)
    return None, absent


def facts_of(config: Config, prepared: Prepared | None) -> DataFacts:
    """Lengths and counts for the cost. Of a set that is not here, the number of prompts it is published with."""
    if prepared is None:
        known = [name for name in config.evaluation.sets if name in BENCHMARKS]
        published = {name: max(BENCHMARKS[name].published, default=0) for name in known}
        return DataFacts(evaluation_prompts=published)
    last = prepared.phases[-1].prompts.report()
    return DataFacts(
        demonstration_tokens=float(last["demonstration_tokens_mean"]) or None,
        prompt_tokens=float(last["prompt_tokens_mean"]) or None,
        evaluation_prompts={name: len(prompts) for name, prompts in prepared.eval_sets.items()},
    )
