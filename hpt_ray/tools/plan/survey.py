"""The plan of a run from its files, and what `--dry-run` checks.

A dry run does everything `prepare` does with what is on this machine, and lists what is not. It needs neither a GPU
nor the model, and of the network only whether the head of a cluster answers. Whatever is here is read and checked as
for a real start, and a mistake in it is an error; a file, a model or its tokenizer that is not here is named. A real
start goes through `prepare` alone, which refuses what is missing.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from hpt_ray.cluster.runtime import address_to_join, missing_pools, room_here
from hpt_ray.config.schema import Config
from hpt_ray.data.benchmarks import BENCHMARKS
from hpt_ray.data.mini import is_mini
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.actors import resource_requests
from hpt_ray.driver.setup import (
    ASKED_OF_REHEARSAL,
    Prepared,
    asked_of,
    check_choices,
    loader,
    prepare,
    roles_of,
)
from hpt_ray.errors import UserError
from hpt_ray.learner.sequence_parallel import check_model
from hpt_ray.observe.run_folder import check_run_dir
from hpt_ray.tools.plan.cost import DataFacts
from hpt_ray.tools.plan.make import Plan, check_context, check_heads, check_plan, make_plan
from hpt_ray.tools.plan.memory import GIB
from hpt_ray.tools.plan.shape import find_config, find_shape, local_folder, without_memory
from hpt_ray.utils.names import nearest_path


def plan_run(config: Config, prepared: Prepared | None) -> Plan:
    """The plan of this run. Raises `UserError` where it cannot fit.

    Host memory is compared with this machine's where the run is for this machine alone.
    """
    shape = find_shape(config.model, config.model.path)
    check_context(config, shape)
    check_heads(config, shape)
    check_sharing(config)
    plan = make_plan(config, shape, facts_of(config, prepared))
    is_local = config.cluster.address == "local"
    check_plan(config, plan, host_gib=psutil.virtual_memory().total / GIB if is_local else None)
    return plan


def check_sharing(config: Config) -> None:
    """Raise `UserError` where ranks cannot share the tokens of a sample of this model, as far as it is here."""
    sharing, model = config.learner.sequence_parallel, config.model
    if sharing > 1 and (found := find_config(model, model.path)) is not None:
        check_model(without_memory(found, trust_remote_code=model.trust_remote_code), sharing)


def survey(config: Config, *, ask_room: bool = True) -> tuple[Prepared | None, list[str]]:
    """The prepared run; or None, and a line for everything that is not on this machine.

    Raises `UserError` for everything else that the user must change. `ask_room`: whether it is to start from here.
    """
    files = [
        (key, path, asked)
        for phase, _, gate, _ in check_choices(config)
        for key, paths, asked in (
            ("data.train", phase.config.data.train, asked_of(phase.config, gate)),
            ("data.rehearsal", phase.config.data.rehearsal, ASKED_OF_REHEARSAL),
        )
        for path in paths
    ]
    files += [
        (f"evaluation.sets.{name}", path, asked_of(config, None))
        for name, path in config.evaluation.sets.items()
    ]
    here = {path: is_mini(path) or Path(path).expanduser().exists() for _, path, _ in files}
    absent = list(
        dict.fromkeys(f"{key}: {path} is not here{_beside(path)}" for key, path, _ in files if not here[path])
    )
    if not check_run_dir(config.run.dir):
        absent.append(f"run.dir: nothing of {config.run.dir} is here; so not whether it may be written")
    absent += check_room(config) if ask_room else []
    folder = local_folder(tokenizer_path(config.model.path))
    if folder is None:
        model = (
            f"model.path: {config.model.path} is no folder here and not in the Hub's cache; so neither its "
            "tokenizer nor what needs it was checked: template, end token, lengths of the prompts"
        )
        return None, [model, *absent]
    if all(here.values()):
        return prepare(config, str(folder)), absent
    _, load = loader(config, str(folder))
    for _, path, asked in files:
        if here[path]:
            load([path], **asked)
    return None, absent


def check_room(config: Config) -> list[str]:
    """Whether the actors find room on this machine, where they will run on it; else a line on what was not asked.

    Raises `UserError` where they do not.
    """
    address = config.cluster.address
    try:
        joined = address_to_join(address)
    except UserError as error:
        if address == "local":
            raise
        return [f"room on the cluster: {str(error).splitlines()[0]}"]
    if joined is not None:
        return [f"room on the cluster at {joined}, which is asked for at the start"]
    requests = resource_requests(config, roles_of(config))
    asked, found = room_here(requests)
    short = [name for name in asked if asked[name] > found[name]]
    problems = [f"{asked[name]:g} {name} are asked for, {found[name]:g} are here" for name in short]
    problems += missing_pools(requests, found)
    if not problems:
        return []
    if address == "auto" and asked["GPU"] and not found["GPU"]:
        return [f"room: it will need a cluster, and none runs here ({'; '.join(problems)})"]
    wanted = ", ".join(
        f"{one.count} × {one.kind} with {one.cpus:g} CPU{f' and {one.gpus:g} GPU' if one.gpus else ''}"
        for one in requests
    )
    raise UserError(
        f"this machine has too little room: {'; '.join(problems)}. Asked: {wanted}. Lower rollout.num_workers, "
        "learner.num_ranks or their num_cpus and num_gpus, or name a cluster in cluster.address."
    )


def seen_at_start(config: Config) -> list[str]:
    """What a dry run takes for granted."""
    lines = []
    if not is_mini(config.model.path) and not config.model.random_init:
        lines.append("whether the weights are those of config.json")
    if services := sorted({*config.observe.trackers} - {"tensorboard", "prometheus"}):
        lines.append(f"whether {', '.join(services)} can be reached")
    if config.checkpoint.mirror is not None:
        lines.append(f"whether {config.checkpoint.mirror} can be read and written")
    return lines


def _beside(path: str) -> str:
    near = nearest_path(Path(path).expanduser())
    return f" (beside it: {near})" if near else ""


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
