"""Sampled responses of a run: what was asked, what came, how it was graded, what trained and why.

In: the dumps of graded rollouts (`observe/rollout_dump.py`). Out: a few groups per step, chosen to show each
branch, and the path of single prompts over their attempts. Token ids are not read, only counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from hpt_ray.errors import UserError
from hpt_ray.observe.rollout_dump import SCHEMA, Line, dump_of, read_columns
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report.attempts import by_prompt
from hpt_ray.tools.report.load import Attempt, RunData

NUM_STEPS = 4  # of which responses are shown
MOST_ATTEMPTS = 8  # of one prompt that is followed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt at one step: `line` holds what all its rollouts share, `responses` a correct and a wrong one."""

    line: Line
    responses: Sequence[Line]


def dumped_steps(run: RunData) -> list[int]:
    """The steps whose rollouts are in the folder."""
    paths = RunFolder(run.root).rollouts.glob("step-*.parquet")
    return sorted(int(path.stem.removeprefix("step-")) for path in paths)


def sampled_responses(run: RunData) -> dict[int, list[Asked]]:
    """By step, from the first to the last that was dumped: one prompt of each branch."""
    steps = _spread(dumped_steps(run), NUM_STEPS)
    return {step: _one_per_branch(read_lines(run, step)) for step in steps}


def read_lines(run: RunData, step: int) -> list[Line]:
    """The dump of a step as dicts, with `num_tokens` in place of ids and logprobs."""
    path = dump_of(RunFolder(run.root).rollouts, step)
    try:
        table = read_columns(path, [name for name in SCHEMA.names if name != "logprobs"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read as parquet ({error}). Remove it to go without it."
        ) from error
    lengths = pc.list_value_length(table["token_ids"])
    lines: list[Line] = table.drop_columns(["token_ids"]).append_column("num_tokens", lengths).to_pylist()
    return [dict.fromkeys(SCHEMA.names) | line for line in lines]  # an older file lacks some columns


def followed_prompts(run: RunData) -> dict[str, list[Attempt]]:
    """The attempts of up to three prompts: one learned, one never solved, one lost again.

    Each is the one that changed most in its kind; of equals, the one with the most attempts.
    """
    graded = by_prompt(attempt for attempt in run.attempts if attempt.rollouts > attempt.aborted)
    kinds: dict[str, list[list[Attempt]]] = {"learned": [], "never solved": [], "lost again": []}
    for path in graded.values():
        first, last, best = path[0].solve_rate, path[-1].solve_rate, max(a.solve_rate for a in path)
        if len(path) > 1:
            kinds["learned"] += [path] if first == 0 and last >= 0.5 else []
            kinds["never solved"] += [path] if best == 0 else []
            kinds["lost again"] += [path] if best >= 0.5 and last == 0 else []
    return {name: _spread(max(kind, key=_change), MOST_ATTEMPTS) for name, kind in kinds.items() if kind}


def _change(attempts: Sequence[Attempt]) -> tuple[float, int]:
    rates = [attempt.solve_rate for attempt in attempts]
    return max(rates) - min(rates), len(attempts)


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many, the first and the last among them."""
    count = min(most, len(items))
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def response_at(lines: Sequence[Line], prompt_id: str) -> Line | None:
    """The line of one response to the prompt, a correct one where there is one."""
    found = [line for line in lines if line["prompt_id"] == prompt_id and line["text"] is not None]
    return max(found, key=lambda line: line["outcome"] == "correct", default=None)


def _one_per_branch(lines: Sequence[Line]) -> list[Asked]:
    groups: defaultdict[Any, list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["group"], line["prompt_id"]].append(line)
    by_branch: dict[str, Asked] = {}
    for group in groups.values():
        asked = Asked(group[0], _telling(group))
        known = by_branch.setdefault(group[0]["branch"], asked)
        if len(asked.responses) > len(known.responses):
            by_branch[group[0]["branch"]] = asked
    return [asked for _, asked in sorted(by_branch.items())]


def _telling(group: Sequence[Line]) -> list[Line]:
    """One response of each outcome, at most three; truncated ones only where there is no other."""
    kinds: dict[str, Line] = {}
    for line in sorted(group, key=lambda line: line["finish"] != "stop"):
        if line["text"] is not None and line["finish"] in ("stop", "length"):
            kinds.setdefault(line["outcome"], line)
    return list(kinds.values())[:3]
