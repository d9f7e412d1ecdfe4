"""`hpt_ray measure [--model M …] [--method NAME …] [--parts NAME] [--config FILE …] [key=value …]`

Measures the gradients of methods against the true policy gradient: bias, variance, signal-to-noise. Samples and
differentiates in this process, or in those of --workers. Writes measure.json, index.html and figures to --out. Exit
code 0: done. 2: the user must change something.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from hpt_ray import __version__
from hpt_ray.cli.first_look import read_config
from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_run_config
from hpt_ray.config.schema import Config
from hpt_ray.data import mini
from hpt_ray.data.mini.base import fresh_model, parse_name, tokenizer_path
from hpt_ray.driver.setup import asked_of, loader
from hpt_ray.errors import UserError, exit_code
from hpt_ray.evaluation.model import ModelSource, locate_model
from hpt_ray.learner.model import load_model_config
from hpt_ray.observe.console import CommandConsole
from hpt_ray.observe.run_folder import write_atomic, write_json
from hpt_ray.reward.service import check_reward_functions
from hpt_ray.tools.measure.estimate import LEAST_PROMPTS
from hpt_ray.tools.measure.methods import chosen
from hpt_ray.tools.measure.page import terminal_table, write_page
from hpt_ray.tools.measure.run import Measured, RewardFunctions, Sizes, summarise
from hpt_ray.tools.measure.worker import Measurement, measured_by_workers
from hpt_ray.tools.report.html import Pictures
from hpt_ray.types import Prompt
from hpt_ray.utils import arguments, plugins


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and say where the numbers are."""
    options = arguments.measure(words)
    try:
        print(run(options))
        return 0
    except Exception as error:
        return exit_code(error)


def run(options: Namespace) -> Path:
    """The whole measurement; returns the page. Raises `UserError` for what the user must change."""
    _check(options)
    sources = [locate_model(model) for model in options.model]
    config = _config(options, sources)
    sources = sources or [locate_model(config.model.path)]
    methods = chosen(config, options.method, options.parts)
    tokenizer = tokenizer_path(sources[0].path)
    _, load = loader(config, tokenizer)
    check_reward_functions(config.reward)
    prompts = _drawn(load(config.data.train, **asked_of(config, "both")), options.prompts, config.run.seed)
    for source in sources:
        load_model_config(config.model, _folder(source))  # a missing one is told before hours of work
    sampler = None if options.sampler is None else _folder(locate_model(options.sampler))
    sizes = Sizes(config.group_size, options.draws, options.reference, options.dimensions)
    console, found = CommandConsole(), []
    for source in sources:
        measurement = Measurement(config, tokenizer, _folder(source), sampler, methods, sizes)
        measured = _measured(measurement, prompts, options)
        bar = track(measured, f"{source.name}: prompts", total=len(prompts), console=console)
        found.append({"name": source.name, "path": source.path, **summarise(bar)})
        console.print(terminal_table(found[-1]))
        page = _write(options.out, {"asked": _asked(options, config), "models": found})
    return page


def _measured(measurement: Measurement, prompts: Sequence[Prompt], options: Namespace) -> Iterator[Measured]:
    """What each prompt comes to, here or by workers."""
    if options.workers:
        yield from measured_by_workers(measurement, prompts, options.workers, options.out / "logs")
        return
    rewards = RewardFunctions(measurement.config)
    try:
        yield from map(measurement.measurer(rewards).measure, prompts)
    finally:
        rewards.close()


def _check(options: Namespace) -> None:
    least = {"prompts": LEAST_PROMPTS, "draws": 1, "reference": 2, "dimensions": 1, "workers": 0}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            raise UserError(f"--{name} is {getattr(options, name)}: give {smallest} or more.")


def _config(options: Namespace, sources: Sequence[ModelSource]) -> Config:
    """That of the files and words; of the first model's own run, where no file is named."""
    runs = [source.run for source in sources if source.run is not None]
    if runs and not options.config:
        config = load_run_config(runs[0] / "config.yaml", options.overrides)
    else:
        config = read_config(options)
    plugins.load(config.run.plugins)
    check_config(config)
    if config.group_size < 2:
        raise UserError(
            f"group_size={config.group_size}: the meter compares groups of rollouts; set 2 or more."
        )
    return config


def _drawn(prompts: Any, count: int, seed: int) -> list[Prompt]:
    """`count` prompts at random, all where there are fewer."""
    if len(prompts) < LEAST_PROMPTS:
        raise UserError(
            f"data.train has {len(prompts)} prompts that can be used; {LEAST_PROMPTS} are needed."
        )
    numbers = np.random.default_rng(seed).choice(len(prompts), min(count, len(prompts)), replace=False)
    return [prompts[int(i)] for i in numbers]


def _folder(source: ModelSource) -> str:
    """Where the weights are. Raises `UserError` for a base of the small task that has not been trained yet."""
    if not mini.is_mini(source.path):
        return source.path
    model = parse_name(source.path)
    if not model.is_built:
        raise UserError(f"{source.path} has not been built yet: run hpt_ray mini-base {source.path} first.")
    return str(fresh_model(model) if model.is_fresh else model.base_folder)


def _asked(options: Namespace, config: Config) -> dict[str, Any]:
    """What decides the numbers, for the page and the JSON."""
    return {
        "prompts": options.prompts,
        "draws": options.draws,
        "reference": options.reference,
        "dimensions": options.dimensions,
        "group_size": config.group_size,
        "sampler": options.sampler or "the model itself",
        "train": config.data.train,
        "seed": config.run.seed,
        "hpt_ray": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "workers": options.workers,
    }


def _write(out: Path, result: dict[str, Any]) -> Path:
    try:
        pictures = Pictures(out / "figures")
        write_json(out / "measure.json", result)
        write_atomic(out / "index.html", write_page(result, pictures))
    except OSError as error:
        raise UserError(f"--out {out}: nothing can be written there: {error}.") from error
    return out / "index.html"


if __name__ == "__main__":
    sys.exit(main())
