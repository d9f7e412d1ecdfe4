"""`python -m hpt_ray.cli.evaluate [--config FILE] [--dry-run] model=… benchmarks=[…] [key=value …]`
`python -m hpt_ray.cli.evaluate compare A B [--json FILE]`

Samples responses to benchmarks and grades them, or compares two results. Exit code 0: done. 2: the
user must change something. 1: a failure; 130: stopped by Ctrl-C; 143: by SIGTERM. After these three
the same command goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpt_ray.utils import signals

if __name__ == "__main__":
    signals.watch()  # while the rest is imported, too

from hpt_ray.cluster.process import QUIET

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

from hpt_ray.cli.mini_base import model_folder  # noqa: E402
from hpt_ray.cluster.runtime import Cluster  # noqa: E402  (after the environment is set)
from hpt_ray.config.load import dump_config  # noqa: E402
from hpt_ray.data import mini  # noqa: E402
from hpt_ray.data.mini.base import parse_name  # noqa: E402
from hpt_ray.errors import Stopped, exit_code  # noqa: E402
from hpt_ray.evaluation.journal import Journal  # noqa: E402
from hpt_ray.evaluation.model import fingerprint  # noqa: E402
from hpt_ray.evaluation.plan import Plan, load_evaluation, make_plan  # noqa: E402
from hpt_ray.evaluation.report import as_json, compare, comparison_table, results_table, summarise  # noqa: E402
from hpt_ray.evaluation.results import read_results, result_of, write_results  # noqa: E402
from hpt_ray.evaluation.run import sample_missing, start_workers  # noqa: E402
from hpt_ray.observe.console import CommandConsole  # noqa: E402
from hpt_ray.observe.run_folder import write_json  # noqa: E402
from hpt_ray.utils import arguments, plugins  # noqa: E402
from hpt_ray.utils.command import this_command  # noqa: E402


def main(words: list[str] | None = None) -> int:
    """Evaluate or compare, and turn what went wrong into an exit code and a message."""
    words = sys.argv[1:] if words is None else words
    console = CommandConsole()
    try:
        if words[:1] == ["compare"]:
            show_comparison(words, console)
            return 0
        plan, dry_run = parse(words)
        console.print(describe(plan), highlight=False, soft_wrap=True)
        if not dry_run:
            asyncio.run(evaluate(plan, console))
        return 0
    except Stopped as stopped:
        signals.say(f"{stopped}")
        return signals.exit_code()
    except Exception as error:
        return exit_code(error)


def parse(words: list[str]) -> tuple[Plan, bool]:
    """The plan, and whether only the plan is wanted."""
    options = arguments.evaluate(words)
    config = load_evaluation(options.config, options.overrides)
    config.plugins = plugins.load(config.plugins)
    if mini.is_mini(config.model):
        parse_name(config.model)
    return make_plan(config), options.dry_run


def describe(plan: Plan) -> str:
    """What will be asked of which model, in a few lines."""
    lines = [f"Evaluating {plan.model.path} → {plan.out}"]
    for task in plan.tasks:
        sampling, version = task.sampling, ""
        if task.benchmark.published:
            version = f" ({task.version or 'no published version with this many is known'})"
        lines.append(
            f"  {task.name}: {len(task.prompts):,} prompts{version} × {task.num_samples}, "
            f"T {sampling.temperature:g}, top-p {sampling.top_p:g}, {sampling.max_tokens:,} tokens, "
            f"graded by {', '.join(dict.fromkeys(task.reward_functions.values()))}"
        )
    return "\n".join(lines)


async def evaluate(plan: Plan, console: Console) -> dict[str, Any]:
    """Sample what is missing, then write prompts.parquet and results.json. Returns the latter."""
    cluster = None
    try:
        model_path = plan.model.path
        if mini.is_mini(model_path):
            cluster = Cluster.connect(plan.config.cluster)
            model_path = str(await model_folder(model_path, cluster, console))
        journal = Journal(plan.out, plan.identity(fingerprint(model_path)), plan.num_samples)
        dump_config(plan.config, plan.out / "config.yaml")
        if journal.num_missing:
            cluster = cluster or Cluster.connect(plan.config.cluster)
            await _answer(plan, journal, cluster, model_path, console)
        summary = finish(plan, journal)
        console.print(results_table(summary))
        console.print(f"Results: {plan.out}", highlight=False, soft_wrap=True)
        return summary
    finally:
        if cluster is not None:
            cluster.close()


async def _answer(plan: Plan, journal: Journal, cluster: Cluster, model_path: str, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = journal.num_done + journal.num_missing

    def kept() -> str:
        return f"{journal.num_done:,} of {total:,} responses are kept. To go on: {this_command()}"

    with Progress(*columns, console=console) as progress, signals.told_by(kept):
        bar = progress.add_task("responses", completed=journal.num_done, total=total)
        workers = await start_workers(cluster, plan, model_path, plan.out / "logs")
        try:
            num_lost = await sample_missing(plan, journal, workers, lambda: progress.advance(bar))
        finally:
            workers.stop()
    if num_lost:
        raise RuntimeError(f"{num_lost} responses were lost with their workers. Run the same command again.")


def finish(plan: Plan, journal: Journal) -> dict[str, Any]:
    """Write the result files of a journal that misses nothing."""
    results = [
        result_of(task.name, prompt, task.benchmark.level, journal.tallies[task.name, prompt.id])
        for task in plan.tasks
        for prompt in task.prompts
    ]
    write_results(plan.out, results)
    summary = summarise(plan, results)
    write_json(plan.out / "results.json", summary)
    journal.close()
    return summary


def show_comparison(words: list[str], console: Console) -> None:
    options = arguments.evaluate(words)
    rows, unshared = compare(read_results(options.a), read_results(options.b))
    console.print(comparison_table(rows, unshared, a=str(options.a), b=str(options.b)))
    if options.json is not None:
        found = {"a": str(options.a), "b": str(options.b), "unshared": unshared, "rows": as_json(rows)}
        write_json(options.json, found)


if __name__ == "__main__":
    sys.exit(main())
