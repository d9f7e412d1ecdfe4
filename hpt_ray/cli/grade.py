"""`hpt_ray grade FILE [--reward-function math] [--only wrong] …`

Grades a file of responses as a run would, and prints a table: what was read as the answer, what was decided, at which
stage and why. The file (parquet, JSON lines, CSV, …) has a response and a ground truth per row, such as a run's
`rollouts/*.parquet`. Exit code 0: graded. 2: the user must change something.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hpt_ray.data.files import read_raw
from hpt_ray.data.shapes import has_column, value_at
from hpt_ray.errors import UserError, exit_code
from hpt_ray.observe.console import CommandConsole
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.functions.table import check_ground_truth, check_reward_function
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.text import printable
from hpt_ray.types import Outcome, RewardResult
from hpt_ray.utils import arguments, plugins

RESPONSES = ("response", "text", "completion", "output")  # `text`: of a run's rollouts
GROUND_TRUTHS = ("ground_truth", "reward_model.ground_truth", "reference", "answer")
OF_PROMPT = "prompt_row"  # of a run's rollouts: what its reward function was given, as JSON
MAX_PROCESSES = 4
SHOWN_CHARS = 60

Raw = dict[str, Any]


def main(words: list[str] | None = None) -> int:
    options = arguments.grade(words)
    try:
        plugins.load(options.plugin)
        check_reward_function(options.reward_function)
        rows = read(options.file)
        response = column(options.file, rows, options.response, RESPONSES, "--response")
        truth = column(options.file, rows, options.ground_truth, GROUND_TRUTHS, "--ground-truth")
        numbers = [i for i, row in enumerate(rows) if isinstance(value_at(row, response), str)]
        tasks = [task(options.reward_function, rows[i], response, truth) for i in numbers]
        check_first(options, tasks)
        num_processes = min(MAX_PROCESSES, os.cpu_count() or 1)
        with Pool(num_processes, timeout_s=options.timeout, preload=[options.reward_function]) as pool:
            results = pool.grade(tasks)
    except Exception as error:
        return exit_code(error)
    console = CommandConsole()
    graded = list(zip((i + 1 for i in numbers), tasks, results, strict=True))
    shown = [entry for entry in graded if options.only in (None, entry[2].outcome.value)]
    console.print(table_of(shown[: options.rows]))
    if len(shown) > options.rows:
        console.print(f"{len(shown) - options.rows:,} further rows: --rows {len(shown)} shows them.")
    console.print(counts_of(results))
    if left_out := len(rows) - len(tasks):
        console.print(f"{left_out:,} rows without a text in `{response}` were left out.")
    return 0


def read(path: Path) -> list[Raw]:
    """The rows of a file of any kind that prompts may have. Raises UserError where it cannot be read."""
    return [row | json.loads(row.get(OF_PROMPT) or "{}") for _, row in read_raw(path)]


def column(path: Path, rows: Sequence[Raw], named: str | None, known: Sequence[str], option: str) -> str:
    """The column to read: the one that the user named, else the first known one. Raises UserError."""
    for name in known if named is None else [named]:
        if has_column(rows, name):
            return name
    found = ", ".join(dict.fromkeys(name for row in rows[:100] for name in row)) or "no row"
    wanted = " or ".join(known) if named is None else named
    raise UserError(f"{path}: there is no column {wanted}; found {found}. Name it: {option} COLUMN")


def task(name: str, row: Raw, response: str, truth: str) -> Task:
    extra, opening = (row["extra"], row.get("opening", "")) if row.get(OF_PROMPT) else (row, "")
    asked = Row(row.get("data_source") or "", row.get("prompt") or "", extra, opening)
    return Task(name, value_at(row, response), value_at(row, truth), asked)


def check_first(options: Any, tasks: Sequence[Task]) -> None:
    """Raises UserError where no ground truth is of use, as when the wrong column was named."""
    problems = [check_ground_truth(each.ground_truth, options.reward_function) for each in tasks]
    if problems and all(problems):
        raise UserError(
            f"{options.file}: `{options.reward_function}` can use none of the ground truths ({problems[0]}). "
            "Name another column: --ground-truth COLUMN"
        )


def table_of(graded: Sequence[tuple[int, Task, RewardResult]]) -> Table:
    table = Table("row", "outcome", "stage, or why", "read as the answer", "ground truth")
    for number, each, result in graded:
        table.add_row(
            str(number),
            Text(result.outcome.value, style="green" if result.outcome is Outcome.CORRECT else "red"),
            *map(_shown, (result.detail, result.extracted, each.ground_truth)),
        )
    return table


def counts_of(results: Sequence[RewardResult]) -> Table:
    """How often each outcome came about, and how."""
    table = Table("outcome", "stage, or why", "responses", "share")
    for (outcome, why), count in Counter((r.outcome.value, r.detail) for r in results).most_common():
        table.add_row(outcome, _shown(why), f"{count:,}", f"{count / len(results):.1%}")
    num_correct = sum(result.correct for result in results)
    table.caption = f"{num_correct:,} of {len(results):,} responses are correct"
    return table


def _shown(value: Any) -> Text:
    text = "" if value is None else " ".join(printable(str(value)).split())
    return Text(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")


if __name__ == "__main__":
    sys.exit(main())
