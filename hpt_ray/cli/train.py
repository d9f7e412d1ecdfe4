"""A run from its configuration on: the plan, the cluster, the folder, the driver. `main` decides how it ends."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.console import Group as Lines

from hpt_ray.cluster.process import QUIET

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

from hpt_ray.checkpoint.manifest import folder_name  # noqa: E402  (after the environment is set)
from hpt_ray.checkpoint.mirror import restore_newest_run  # noqa: E402
from hpt_ray.cli.first_look import read_config  # noqa: E402
from hpt_ray.cli.mini_base import model_folder, with_reference  # noqa: E402
from hpt_ray.cluster.runtime import IN_A_JOB, Cluster  # noqa: E402
from hpt_ray.config.checks import check_config  # noqa: E402
from hpt_ray.config.load import dump_config, write_private  # noqa: E402
from hpt_ray.config.phases import Phase, phases_of  # noqa: E402
from hpt_ray.config.schema import Config  # noqa: E402
from hpt_ray.data import mini  # noqa: E402
from hpt_ray.driver.data_card import make_card  # noqa: E402
from hpt_ray.driver.driver import Driver  # noqa: E402
from hpt_ray.driver.setup import Prepared  # noqa: E402
from hpt_ray.errors import UserError  # noqa: E402
from hpt_ray.observe.data_card import DataCard, card_tables, warning_panel  # noqa: E402
from hpt_ray.observe.progress import Progress  # noqa: E402
from hpt_ray.observe.run_folder import RunFolder  # noqa: E402
from hpt_ray.observe.tables import start_summary  # noqa: E402
from hpt_ray.utils import plugins  # noqa: E402
from hpt_ray.utils.command import this_command  # noqa: E402
from hpt_ray.utils.lock import alone  # noqa: E402

if TYPE_CHECKING:
    from hpt_ray.tools.plan import Plan

HANDOVER_S = 900.0  # for a driver to save and end after SIGTERM, as in deploy/runtime_env.yaml


def configured(options: Namespace) -> Config:
    """The checked configuration that the words of the command ask for. Raises `UserError`."""
    return completed(read_config(options))


def completed(config: Config) -> Config:
    """With the user's parts loaded, and all rules checked. Raises `UserError`."""
    config.run.plugins = plugins.load(config.run.plugins)
    for section in (config.algorithm, config.selection):
        vars(section).update(plugins.absolute(vars(section)))
    config.phases = plugins.absolute(config.phases)
    check_config(config)
    return config


def show_plan(config: Config, console: Console) -> None:
    """Check everything that can be checked before a start, and show what would run."""
    from hpt_ray.tools.plan import plan_run, seen_at_start, survey
    from hpt_ray.tools.plan.show import not_checked

    found, absent = survey(config)
    card = accepted_card(config, found, console) if found else None
    folder_name = Path(config.run.dir) / f"{config.run.name}-TIME"
    console.print(start_tables(config, found, card, plan_run(config, found), folder_name))
    console.print(not_checked(absent, seen_at_start(config)))
    show_warnings(card, console)


def show_layouts(config: Config, cards: str, console: Console) -> None:
    """Show the best layouts on these cards."""
    from hpt_ray.tools.plan import layouts

    console.print(layouts.show_layouts(config, cards), crop=False)  # keys stay on one line, to be copied


def accepted_card(config: Config, prepared: Prepared, console: Console) -> DataCard:
    """The data card. Where a set is refused, it is shown as far as it goes, and `UserError` says why."""
    card = make_card(config, prepared)
    if card.refusal is not None:
        console.print(card_tables(card))
        raise UserError(card.refusal)
    return card


def show_warnings(card: DataCard | None, console: Console) -> None:
    """What is wrong with the data, where something is: the last thing that is shown."""
    if card and card.warnings:
        console.print(warning_panel(card.warnings))


def start_tables(
    config: Config, prepared: Prepared | None, card: DataCard | None, plan: Plan, folder: Path
) -> RenderableType:
    """A table for each phase: the algorithm, the batch sizes and what follows from them; then data card and plan.

    `prepared` and `card` are None in a dry run without all of its files.
    """
    head = f"Training {config.run.name} for {config.run.steps} steps"
    phases: Sequence[Phase] = prepared.phases if prepared else phases_of(config)
    tables = []
    for phase in phases:
        which = f": phase {phase.number}, {phase.before + 1} to {phase.last}" if len(phases) > 1 else ""
        tables.append(
            start_summary(
                phase.config,
                title=head + which,
                folder=folder,
                turn_end=prepared.turn_end if prepared else None,
            )
        )
    from hpt_ray.tools.plan.show import plan_summary

    return Lines(*tables, *([card_tables(card)] if card else []), plan_summary(plan))


def folder_to_resume(config: Config) -> RunFolder | None:
    """The folder that `resume` names; None where this is a new run."""
    if config.resume == "never":
        return None
    if config.resume != "auto":
        return RunFolder.open(config.resume)
    found = RunFolder.newest(config.run.dir, config.run.name)
    mirror = config.checkpoint.mirror
    if found is None and mirror is not None:
        found = restore_newest_run(mirror, config.run.dir, config.run.name)
    return None if found is None else RunFolder.open(found.root)


def nothing_left(config: Config, folder: RunFolder) -> str:
    """That a run is done, and what its user may want then; empty where it has something left to do."""
    steps = config.run.steps
    if not folder.summary.is_file() or not (folder.checkpoints / folder_name(steps)).is_dir():
        return ""
    if json.loads(folder.summary.read_text()).get("steps") != steps:
        return ""
    return (
        f"nothing left to do: {folder.root} has all of its {steps} steps. Train further with run.steps=N, "
        "or start a run of its own with resume=never."
    )


def to_go_on(config: Config, folder: RunFolder | None) -> str:
    """The command that does after a stop."""
    if folder is None or not any(folder.checkpoints.glob("step-*")):
        return f"To start again: {this_command()}"
    keys = {} if config.resume == "auto" else {"resume": str(folder.root)}
    return f"To go on: {this_command(**keys)}"


@contextmanager
def holding(folder: RunFolder, console: Console) -> Iterator[None]:
    """Be the only driver of this run: one that is asked to stop may still be saving when the next one comes."""

    def say_so() -> None:
        console.print(
            f"Another process trains in {folder.root}. Waiting for its end, at most {HANDOVER_S / 60:.0f} minutes.",
            highlight=False,
            soft_wrap=True,
        )

    with ExitStack() as stack:
        try:
            stack.enter_context(alone(folder.root, wait_s=HANDOVER_S, when_waiting=say_so))
        except TimeoutError as error:
            raise UserError(
                f"Another process trains in {folder.root}, and two would destroy it. Wait for its end or stop it, "
                "or start a run of its own with `resume=never`."
            ) from error
        yield


def write_config(config: Config, folder: RunFolder) -> None:
    """config.yaml as this run uses it. What a resumed run had before stays, as config-1.yaml and so on."""
    now = folder.root / ".config.yaml.partial"
    dump_config(config, now)
    before = folder.config.read_bytes() if folder.config.is_file() else None
    if before is not None and before != now.read_bytes():
        number = 1 + len(list(folder.root.glob("config-*.yaml")))
        write_private(folder.root / f"config-{number}.yaml", before.decode("utf-8", "replace"))
    now.replace(folder.config)


@contextmanager
def connected(config: Config, prepared: Prepared) -> Iterator[tuple[Cluster, Plan]]:
    """The cluster, until the end, and the plan of the run.

    The plan counts the model's parameters with all of transformers, whose import takes as long as Ray's start; so
    they go side by side. Raises `UserError` where there is no cluster, or the run cannot fit.
    """
    with ThreadPoolExecutor(max_workers=1) as aside:
        planning = aside.submit(planned, config, prepared)
        # In a job Ray may unpack the working directory anew as it connects, under the feet of what is imported.
        if IN_A_JOB in os.environ:
            planning.result()
        cluster = Cluster.connect(config.cluster)
    try:
        yield cluster, planning.result()
    finally:
        cluster.close()


def planned(config: Config, prepared: Prepared) -> Plan:
    from hpt_ray.tools.plan import plan_run, show  # noqa: F401  (which shows it once Ray is connected)

    return plan_run(config, prepared)


async def run(
    cluster: Cluster, config: Config, prepared: Prepared, folder: RunFolder, console: Console
) -> None:
    """Build the base model where the small task's is not there yet; train."""
    if mini.is_mini(config.model.path):
        model_path = await model_folder(config.model.path, cluster, console)
        prepared = replace(prepared, model_path=str(model_path))
    config = await with_reference(config, cluster, console)
    with Progress(config.run.steps, console=console) as progress:
        await Driver(config, prepared, folder, progress, report=report).run(cluster)


def report(run: Path) -> Path:
    """The page of a run, written."""
    from hpt_ray.tools.report.__main__ import load_all, write_report

    return write_report(load_all([run]))
