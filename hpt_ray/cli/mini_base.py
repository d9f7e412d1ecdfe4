"""The weak base models of the small task: `mini:SIZE`, `mini:SIZE-llama` and `mini:SIZE-sSEED` as `model.path`.

A base is trained on first use, by the learner and the driver of every other run: supervised, on a corpus
with slips and unboxed endings, so that it knows four of six families and half forgets to answer. It is
kept in the cache; `mini:SIZE-fresh` is the untrained model. `python -m hpt_ray.cli.mini_base mini:t mini:xs …`
builds bases ahead of the runs that need them.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.load import dump_config
from hpt_ray.config.schema import ClusterConfig, Config
from hpt_ray.data.mini import is_mini
from hpt_ray.data.mini.base import RECIPES, MiniModel, fresh_model, parse_name
from hpt_ray.driver.driver import Driver
from hpt_ray.driver.setup import prepare, roles_of
from hpt_ray.errors import Stopped, exit_code
from hpt_ray.observe.console import CommandConsole
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.utils import arguments, signals
from hpt_ray.utils.cache import cache_dir, cached_folder


def base_recipe(model: MiniModel) -> Config:
    """The run that trains a base. Its seed is not that of the runs that start from it."""
    steps, learning_rate = RECIPES[model.size]
    name = f"{model.size}-{model.architecture}"
    config = Config(prompts_per_step=32, group_size=0, max_tokens_per_micro_batch=4096)
    config.run = replace(config.run, name=f"base-{name}-s{model.seed}", steps=steps, seed=model.seed)
    config.model = replace(config.model, path=f"mini:{name}-fresh")
    config.data = replace(
        config.data,
        train=["mini:base"],
        template="plain",
        add_bos=True,
        max_prompt_tokens=40,
        max_response_tokens=64,
    )
    config.algorithm = replace(config.algorithm, name="sft", demo_loss_aggregation="token-mean")
    config.learner = replace(
        config.learner,
        learning_rate=learning_rate,
        schedule="linear",
        warmup_steps=10,
        betas=[0.9, 0.95],
        weight_decay=0.0,
    )
    config.observe = replace(config.observe, samples_every=0, rollouts_every=0)
    return config


async def model_folder(uri: str, cluster: Cluster, console: Console) -> Path:
    """The folder of `mini:…`, trained now if it is not in the cache."""
    model = parse_name(uri)
    if model.is_fresh:
        return fresh_model(model)
    config, folder = base_recipe(model), model.base_folder
    if model.is_built:
        return folder
    # Nothing else runs now. Not part of the recipe, which is the same on every machine.
    config.learner.num_cpus = min(2, cluster.num_cpus)
    console.print(f"Building the weak base model {uri} (once; kept in {folder})")
    prepared = prepare(config, str(fresh_model(model)))
    run = RunFolder.create(cache_dir() / "runs", config.run.name)
    dump_config(config, run.config)
    with Progress(config.run.steps, console=console, step_line_s=20.0) as progress:
        try:
            await Driver(config, prepared, run, progress, quiet=True).run(cluster)
        except Stopped:
            raise Stopped(f"Stopped while {uri} was being built, which will begin again.") from None
    checkpoint = CheckpointStore(run.checkpoints, keep=1).latest().path
    assert checkpoint is not None

    def adopt(target: Path) -> None:
        shutil.copytree(checkpoint / "hf", target, dirs_exist_ok=True)

    return cached_folder(folder, adopt)


async def with_reference(config: Config, cluster: Cluster, console: Console) -> Config:
    """The same with the folder of a frozen policy that is named as `mini:…`, trained now if need be."""
    path = config.reference.path
    if path is None or not is_mini(path) or not roles_of(config).reference:
        return config
    return replace(
        config, reference=replace(config.reference, path=str(await model_folder(path, cluster, console)))
    )


async def build(uris: list[str]) -> None:
    """Build the bases that are missing, one after another."""
    cluster = Cluster.connect(ClusterConfig())
    try:
        for uri in uris:
            print(await model_folder(uri, cluster, CommandConsole()))
    finally:
        cluster.close()


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0: all are there."""
    if words is None:
        signals.watch()
    models = arguments.mini_base(words).models
    try:
        for uri in models:
            parse_name(uri)
        asyncio.run(build(models))
        return 0
    except Stopped as stopped:
        signals.say(f"{stopped}")
        return signals.exit_code()
    except Exception as error:
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
