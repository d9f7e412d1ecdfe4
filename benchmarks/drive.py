"""A run whose driver also measures: in this process, on a Ray of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from rich.console import Console

from hpt_ray.cli.mini_base import model_folder
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.load import load_config
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.driver import Driver
from hpt_ray.driver.setup import prepare
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder

Measuring = TypeVar("Measuring", bound=Driver)


async def drive(make: type[Measuring], words: list[str], folder: Path) -> Measuring:
    """The driver that has run the small task as `words` say, with its run folder below `folder`."""
    config = load_config(None, words)
    console = Console(quiet=True)
    cluster = Cluster.connect(config.cluster)
    try:
        path = await model_folder(config.model.path, cluster, console)
        prepared = prepare(config, tokenizer_path(str(path)))
        run = RunFolder.create(folder / "runs", config.run.name)
        with Progress(config.run.steps, console=console) as progress:
            driver = make(config, prepared, run, progress, quiet=True)
            await driver.run(cluster)
        return driver
    finally:
        cluster.close()
