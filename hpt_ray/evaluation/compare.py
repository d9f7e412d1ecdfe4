"""Two result files side by side: exclusive solves per benchmark and level (paper, Table 4), paired difference.

A prompt counts as solved when at least half of its answers are right; with one answer each, when it is
right. +X: A solves what B does not; −Y: the reverse. The difference is that of the share of right answers,
prompt by prompt, so what makes prompts easy or hard for both falls out of its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpt_ray.errors import UserError
from hpt_ray.evaluation.estimates import Estimate, mean_over_prompts
from hpt_ray.evaluation.results import PromptResult

Pair = tuple[PromptResult, PromptResult]
ALL = "all"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A against B on the prompts of one benchmark and level (`all`: every level)."""

    benchmark: str
    level: str
    prompts: int
    solved_a: int
    solved_b: int
    only_a: int  # +X
    only_b: int  # −Y
    difference: Estimate  # mean of A minus B


def compare(a: Sequence[PromptResult], b: Sequence[PromptResult]) -> tuple[list[Comparison], dict[str, int]]:
    """The comparisons, benchmark by benchmark with its levels first, and how many prompts only one has.

    Raises UserError where they share no prompt, or where the same id is another prompt.
    """
    of_b = {(row.benchmark, row.prompt_id): row for row in b}
    pairs = [(row, other) for row in a if (other := of_b.get((row.benchmark, row.prompt_id))) is not None]
    for row, other in pairs:
        if row.reference_hash != other.reference_hash:
            raise UserError(
                f"{row.benchmark}, prompt {row.prompt_id}: the two files have different references for it, "
                "so they were not made from the same prompts."
            )
    if not pairs:
        raise UserError("The two files have no prompt in common.")
    rows = []
    for benchmark in dict.fromkeys(row.benchmark for row, _ in pairs):
        of_benchmark = [pair for pair in pairs if pair[0].benchmark == benchmark]
        levels = sorted({row.level for row, _ in of_benchmark if row.level is not None})
        for level in levels if len(levels) > 1 else []:
            of_level = [pair for pair in of_benchmark if pair[0].level == level]
            rows.append(_comparison(benchmark, level, of_level))
        rows.append(_comparison(benchmark, ALL, of_benchmark))
    return rows, {"only in A": len(a) - len(pairs), "only in B": len(b) - len(pairs)}


def _comparison(benchmark: str, level: str, pairs: list[Pair]) -> Comparison:
    return Comparison(
        benchmark=benchmark,
        level=level,
        prompts=len(pairs),
        solved_a=sum(a.solved for a, _ in pairs),
        solved_b=sum(b.solved for _, b in pairs),
        only_a=sum(a.solved and not b.solved for a, b in pairs),
        only_b=sum(b.solved and not a.solved for a, b in pairs),
        difference=mean_over_prompts(np.array([a.correct / a.n - b.correct / b.n for a, b in pairs])),
    )


def as_json(rows: Sequence[Comparison]) -> list[dict]:
    return [{**asdict(row), "difference": row.difference.as_json()} for row in rows]


def comparison_table(
    rows: Sequence[Comparison], unshared: dict[str, int], *, a: str, b: str
) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("benchmark", no_wrap=True)
    table.add_column("level", no_wrap=True)
    for name in ("asked", "A solves", "B solves", "+X/−Y", "percent", "A − B"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        half_width = row.difference.half_width
        interval = "" if half_width is None else f" ± {100 * half_width:.1f}"
        table.add_row(
            Text(row.benchmark),
            Text(row.level),
            f"{row.prompts:,}",
            f"{row.solved_a:,}",
            f"{row.solved_b:,}",
            f"+{row.only_a}/−{row.only_b}",
            f"{100 * row.only_a / row.prompts:.1f}/{100 * row.only_b / row.prompts:.1f}",
            f"{100 * row.difference.value:+.1f}{interval}",
        )
    lines: list[RenderableType] = [Text(f"A: {a}"), Text(f"B: {b}"), table]
    lines.append(Text("±: half a 95 % interval of the paired difference over prompts.", style="dim"))
    lines += [Text(f"{count:,} prompts are {where}.") for where, count in unshared.items() if count]
    return Lines(*lines)
