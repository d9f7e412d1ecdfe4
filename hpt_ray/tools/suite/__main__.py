"""`python -m hpt_ray.tools.suite SUITE.yaml [--only PATTERN] [--plan | --pilot | --report] [--jobs …] [key=value …]`

Carry a suite out and write one report. The same command goes on where it was stopped. Exit code 0: everything
is there. 1: something failed; the report says what. 2: the user must change something. 130: stopped by Ctrl-C;
143: by SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from hpt_ray.utils import signals

if __name__ == "__main__":
    signals.watch()  # while the rest is imported, too

from hpt_ray.cluster.process import QUIET

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

from hpt_ray.errors import Stopped, UserError, exit_code  # noqa: E402  (after the environment is set)
from hpt_ray.observe.console import CommandConsole  # noqa: E402
from hpt_ray.observe.tables import plain_table  # noqa: E402
from hpt_ray.tools.plan.show import not_checked, two_digits  # noqa: E402
from hpt_ray.tools.suite.hours import GPUS, Row, rows_of  # noqa: E402
from hpt_ray.tools.suite.jobs import Launcher, LocalLauncher  # noqa: E402
from hpt_ray.tools.suite.matrix import RunSpec  # noqa: E402
from hpt_ray.tools.suite.pilot import Pilot  # noqa: E402
from hpt_ray.tools.suite.ray_jobs import RayLauncher  # noqa: E402
from hpt_ray.tools.suite.report import write_report  # noqa: E402
from hpt_ray.tools.suite.runner import carry_out, look  # noqa: E402
from hpt_ray.tools.suite.state import Action  # noqa: E402
from hpt_ray.tools.suite.suite import Suite, load_suite  # noqa: E402
from hpt_ray.utils import arguments  # noqa: E402
from hpt_ray.utils.command import this_command  # noqa: E402
from hpt_ray.utils.lock import alone  # noqa: E402

T = TypeVar("T")


def main(words: list[str] | None = None) -> int:
    """Run, and turn what went wrong into an exit code and a message."""
    console = CommandConsole()
    try:
        options = arguments.suite(words)
        suite = load_suite(options.suite, options.overrides)
        if options.pilot:
            with holding(suite.out):
                return fly(Pilot(look(suite, options.only)), console, start=not options.dry_run)
        if options.dry_run:
            show_plan(suite, options.only, console)
            return 0
        with holding(suite.out):
            return report_on(suite, options, console)
    except Stopped as stopped:
        signals.say(f"{stopped} To go on: {this_command()}")
        return signals.exit_code()
    except Exception as error:
        return exit_code(error)


def first_sentence(text: str) -> str:
    """Example: `first_sentence("a.b is 3. Lower it.") == "a.b is 3."`."""
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", text, maxsplit=1)[0]


def report_on(suite: Suite, options: Namespace, console: Console) -> int:
    """Do what is missing, unless nothing is to be started, and write the report."""
    on_ray = options.jobs == "ray"
    launcher = RayLauncher(options.address, options.working_dir) if on_ray else LocalLauncher()
    if options.report:
        done = look(suite, options.only)
    else:
        done = asyncio.run(stoppable(launcher, lambda: carry_out(suite, launcher, console, options.only)))
    console.print(f"Report: {write_report(done)}", highlight=False, soft_wrap=True)
    for name, why in done.missing.items():
        console.print(f"missing: {name}: {why}", highlight=False, markup=False, soft_wrap=True)
    return 1 if done.missing else 0


def fly(pilot: Pilot, console: Console, *, start: bool) -> int:
    """Check every row, then start those that are right; a table of what passed and what did not."""
    for row in pilot.rows:
        pilot.check(row)
        said = pilot.results[row.id] or "can start"
        console.print(f"{row.id}: {said}", markup=False, highlight=False, soft_wrap=True)
    console.print(not_checked([*pilot.absent]))
    console.print(
        "Instead of what is not here, and of every file of prompts, stand-ins are tried.", soft_wrap=True
    )
    if start and (jobs := pilot.jobs()):
        launcher = LocalLauncher()
        asyncio.run(stoppable(launcher, lambda: pilot.fly(jobs, launcher, console)))
    rows = [[name, first_sentence(why) if why else "passed"] for name, why in pilot.results.items()]
    title = "Pilot" if start else "Pilot: checked alone"
    console.print(plain_table(["row", "result"], rows, align="ll", title=title))
    console.print(f"Logs: {pilot.folder / 'logs'}", highlight=False, soft_wrap=True)
    return 1 if any(pilot.results.values()) else 0


async def stoppable(launcher: Launcher, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What comes of `work`. At a signal the launcher does what is due, and `Stopped` says it."""
    launcher.open()
    task = asyncio.ensure_future(work())
    loop = asyncio.get_running_loop()
    try:
        with signals.answered_by(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await task
    except asyncio.CancelledError:
        raise Stopped(f"Stopped. {launcher.when_stopped}") from None
    finally:
        launcher.close()


@contextlib.contextmanager
def holding(out: Path) -> Iterator[None]:
    """Be alone in the suite's folder. UserError where somebody else is there, or it cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(out))
        except TimeoutError as error:
            raise UserError(
                f"Another process carries out a suite in {out}. Wait for it, or use out=OTHER."
            ) from error
        except OSError as error:
            raise UserError(f"Cannot write to {out}: {error}. Name another folder with out=…") from error
        yield


def show_plan(suite: Suite, only: list[str], console: Console) -> None:
    """What is there and what is missing, by model and method; nothing is started or written."""
    done = look(suite, only)

    def counts(runs: Sequence[RunSpec]) -> str:
        return f"{sum(run.id in done.folders for run in runs)} of {len(runs)}" if runs else "–"

    table = Table("model", "method", title=suite.keys.title)
    for name in ("tries", "runs", "attempts a run"):
        table.add_column(name, justify="right")
    for pair in suite.pairs():
        tries, runs = ([run for run in of if run.pair == pair] for of in (done.tries, done.planned))
        if runs:
            method = suite.methods[pair[1]]
            attempts = f"{runs[0].attempts:,}{' *' if method.budget else ''}"
            table.add_row(pair[0], method.title, counts(tries), counts(runs), attempts)
    console.print(table)
    console.print(
        f"{counts(done.tries)} tries and {counts(done.planned)} runs are done. Output: {suite.out}",
        highlight=False,
    )
    if rows := rows_of(done):
        console.print(hours_table(suite, rows))
    for name, state in done.states.items():
        if state.action in (Action.CHANGED, Action.CONTINUE):
            why = "; ".join(state.differences)
            console.print(f"{name}: {state.action.value} {why}", markup=False, highlight=False)


def hours_table(suite: Suite, rows: Sequence[Row]) -> Table:
    """What is left, a line for each model and method."""
    price = suite.keys.gpu_hour_price
    table = Table(
        "model",
        "method",
        box=box.SIMPLE_HEAD,
        title="What is left, expected (least to most): GPU hours of an A100",
    )
    for name in ("runs", "evaluations", "all", f"at ${price:g} an hour", *(f"on {n}" for n in GPUS)):
        table.add_column(name, justify="right")
    for row in rows:
        model, method = row.pair
        if row is rows[-1]:
            table.add_section()
        title = suite.methods[method].title if method in suite.methods else method and "before training"
        least, expected, most = (two_digits(row.gpu_hours(which)) for which in range(3))
        table.add_row(
            model or "all",
            title,
            *(
                two_digits(row.gpu_hours(kind="tries") + row.gpu_hours(kind="runs")),
                two_digits(row.gpu_hours(kind="evaluations")),
            ),
            f"{expected} ({least} to {most})",
            f"${two_digits(price * row.gpu_hours())}",
            *("too large" if (hours := row.wall_h(n)) is None else f"{two_digits(hours)} h" for n in GPUS),
        )
    table.caption = (
        "on 1, 8, 64: wall time on so many GPUs, each run on as many as its recipe names, with `parallel` as many runs "
        "as there is room for; on 1: on a single one."
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
