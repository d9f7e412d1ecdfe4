"""The weak base models of the small task: `mini:SIZE` and `mini:SIZE-llama` as `model.path`.

A base is trained on first use, by the learner and the driver of every other run: supervised, on a corpus
with slips and unboxed endings, so that it knows four of six families and half forgets to answer. It is
kept in the cache; `mini:SIZE-fresh` is the untrained model. `python -m hpt_ray.mini_base mini:t mini:xs …`
builds bases ahead of the runs that need them.
"""

from __future__ import annotations

import asyncio
import difflib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.load import dump_config
from hpt_ray.config.schema import ClusterConfig, Config
from hpt_ray.data import mini
from hpt_ray.data.cache import cache_dir, cached_folder
from hpt_ray.driver import Driver
from hpt_ray.errors import UserError, exit_code
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.setup import prepare

VERSION = 1  # goes up with every change of `base_recipe` or of the corpus
# Steps and peak learning rate by size; more of either makes the base too good to show anything.
# All four bases of the suites solve 19-20 % of samples at temperature 1, and 63-64 % of training questions at least
# once and not always in eight.
RECIPES = {"t": (1800, 4e-3), "xs": (1500, 4e-3), "w": (1800, 2.5e-3)}
ARCHITECTURES = ("qwen2", "llama")


def parse_name(uri: str) -> tuple[str, str, bool]:
    """`mini:xs-llama-fresh` → size, architecture, whether it is the untrained one."""
    from hpt_ray.data.mini.model import SIZES

    size, *rest = uri.removeprefix(mini.PREFIX).split("-")
    architecture = next((a for a in rest if a in ARCHITECTURES), "qwen2")
    fresh = "fresh" in rest
    if size not in SIZES or set(rest) - {*ARCHITECTURES, "fresh"} or (size not in RECIPES and not fresh):
        names = [*(f"mini:{s}" for s in RECIPES), *(f"mini:{s}-fresh" for s in SIZES)]
        close = difflib.get_close_matches(uri, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"model.path={uri} is no model of the small task.{hint} There are: {', '.join(names)}."
        )
    return size, architecture, fresh


def fresh_model(size: str, architecture: str) -> Path:
    """The folder of the untrained model with its tokenizer."""
    from hpt_ray.data.mini.model import create_model
    from hpt_ray.data.mini.tokenizer import build_tokenizer

    def write(folder: Path) -> None:
        create_model(size, seed=0, architecture=architecture).save_pretrained(folder)  # type: ignore[arg-type]
        build_tokenizer().save_pretrained(folder)

    return cached_folder(cache_dir() / f"mini-model-v{mini.VERSION}-{size}-{architecture}", write)


def base_recipe(size: str, architecture: str) -> Config:
    """The run that trains a base. One base a size: the seed is not that of the runs that start from it."""
    steps, learning_rate = RECIPES[size]
    config = Config(questions_per_step=32, rollouts_per_question=0, tokens_per_microbatch=4096)
    config.run = replace(config.run, name=f"base-{size}-{architecture}", steps=steps, seed=0)
    config.model = replace(config.model, path=f"mini:{size}-{architecture}-fresh")
    config.data = replace(
        config.data,
        train=["mini:base"],
        template="plain",
        add_bos=True,
        max_prompt_tokens=40,
        max_response_tokens=64,
    )
    config.algorithm = replace(config.algorithm, name="sft", demo_normalizer="token_mean")
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


def base_folder(size: str, architecture: str) -> Path:
    """Where the trained base is kept."""
    return cache_dir() / f"mini-base-v{VERSION}-{size}-{architecture}"


def is_built(uri: str) -> bool:
    """Whether `mini:…` needs no training any more."""
    size, architecture, fresh = parse_name(uri)
    return fresh or base_folder(size, architecture).is_dir()


async def model_folder(uri: str, cluster: Cluster, console: Console) -> Path:
    """The folder of `mini:…`, trained now if it is not in the cache."""
    size, architecture, fresh = parse_name(uri)
    if fresh:
        return fresh_model(size, architecture)
    config = base_recipe(size, architecture)
    folder = base_folder(size, architecture)
    if folder.is_dir():
        return folder
    # Nothing else runs now. Not part of the recipe, which is the same on every machine.
    config.learner.num_cpus = min(2, cluster.num_cpus)
    console.print(f"Building the weak base model {uri} (once; kept in {folder})")
    prepared = prepare(config, str(fresh_model(size, architecture)))
    run = RunFolder.create(cache_dir() / "runs", config.run.name)
    dump_config(config, run.config)
    with Progress(config.run.steps, console=console) as progress:
        await Driver(config, prepared, run, progress, quiet=True).run(cluster)
    checkpoint = CheckpointStore(run.checkpoints, keep=1).latest().path
    assert checkpoint is not None

    def adopt(target: Path) -> None:
        shutil.copytree(checkpoint / "hf", target, dirs_exist_ok=True)

    return cached_folder(folder, adopt)


async def build(uris: list[str]) -> None:
    """Build the bases that are missing, one after another."""
    cluster = Cluster.connect(ClusterConfig())
    try:
        for uri in uris:
            print(await model_folder(uri, cluster, Console()))
    finally:
        cluster.close()


def main(arguments: list[str]) -> int:
    """Exit code 0: all are there."""
    try:
        for uri in arguments:
            parse_name(uri)
        asyncio.run(build(arguments))
        return 0
    except Exception as error:
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
