"""A plan as a table for people: a `Plan` in, something that rich prints out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from hpt_ray.observe.tables import plain_table, two_columns
from hpt_ray.tools.plan.cost import Cost
from hpt_ray.tools.plan.make import Group, Plan

SHOWN_GIB = 0.05  # a smaller part of the memory is not listed


def plan_summary(plan: Plan) -> RenderableType:
    """Who stands where with how much memory, what a weight sync moves, and the expected GPU hours."""
    rows = []
    for group in plan.groups:
        gpus = f", {group.gpus:g} GPU" if group.gpus else ""
        each = f"{group.cpus:g} CPU{gpus}" if group.cpus or gpus else "no core of its own"
        rows.append([f"{group.count} × {group.kind}", each, *_memory_in_words(group, plan.gpu_gib)])
    facts = two_columns()
    if all(group.memory is None for group in plan.groups):
        facts.add_row("memory", "not planned: the model's config.json is not here, and its name is not known")
    if plan.config.cluster.colocate:
        facts.add_row("engines and learner", "in turns" if plan.config.cluster.in_turns else "at once")
    if (size := plan.sync_bytes) is not None:
        facts.add_row("weights per sync", f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:.3g} GB")
    if plan.costs is not None:
        facts.add_row("expected cost", _cost_in_words(plan.costs, plan.num_gpus))
    header = ["actors", "each", "fullest moment", "of which, GiB"]
    return Lines(plain_table(header, rows, align="llrl"), facts)


def _memory_in_words(group: Group, gpu_gib: float) -> tuple[str, str]:
    if (memory := group.memory) is None:
        return "", ""
    parts = sorted(memory.terms, key=lambda term: -term.gib)
    words = [f"{term.name} {term.gib:.1f}" for term in parts if term.gib >= SHOWN_GIB]
    if memory.host_gib:
        words.append(f"and {memory.host_gib:.1f} of host memory")
    if memory.note:
        words.append(memory.note)
    limit = f" of {gpu_gib:g}" if group.gpus else ""
    return f"{memory.gib:.1f}{limit} GiB", ", ".join(words)


def _cost_in_words(costs: tuple[Cost, Cost, Cost], num_gpus: float) -> str:
    least, expected, most = costs
    busy = sum(expected.busy.values()) or 1.0
    shares = ", ".join(f"{name} {amount / busy:.0%}" for name, amount in expected.busy.items() if amount)
    gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus:g} GPUs"
    return (
        f"{two_digits(expected.gpu_hours)} GPU hours of an A100 ({two_digits(least.gpu_hours)} to "
        f"{two_digits(most.gpu_hours)}): {two_digits(expected.wall / 3600)} hours on {gpus}; {shares}"
    )


def not_checked(absent: Sequence[str], later: Sequence[str] = ()) -> RenderableType:
    """What a dry run could not look at, or that there was nothing of the kind; and what only a start shows."""
    last = f" Only a start shows {', and '.join(later)}." if later else ""
    if not absent:
        return Text(f"Everything was checked.{last}")
    return Lines(
        Text("Not checked, because it is not on this machine:", style="bold"),
        *(Text(f"  {line}", overflow="fold") for line in absent),
        Text(f"Everything else was checked.{last}"),
    )


def two_digits(number: float) -> str:
    """Rounded to what an estimate is worth: 1,234 is 1,200."""
    return f"{float(f'{number:.2g}'):,.10g}"
