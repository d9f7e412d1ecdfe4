"""Sampled answers of a run: what was asked, what came, how it was graded, what trained and why.

In: the dumps of graded rollouts (`observe/rollout_dump.py`). Out: a few groups per step, chosen to show each
branch, and the path of single prompts over their attempts. Token ids are not read, only counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hpt_ray.errors import UserError
from hpt_ray.observe.rollout_dump import SCHEMA, dump_of, read_columns
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report.load import Attempt, RunData

NUM_STEPS = 4  # of which answers are shown
MOST_VISITS = 8  # of one prompt that is followed

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt at one step: `line` holds what all its rollouts share, `answers` a right and a wrong one."""

    step: int
    line: Line
    answers: Sequence[Line]


def dumped_steps(run: RunData) -> list[int]:
    """The steps whose rollouts are in the folder."""
    paths = RunFolder(run.root).rollouts.glob("step-*.parquet")
    return sorted(int(path.stem.removeprefix("step-")) for path in paths)


def sampled_responses(run: RunData) -> dict[int, list[Asked]]:
    """By step, from the first to the last that was dumped: one prompt of each branch."""
    steps = dumped_steps(run)
    count = min(NUM_STEPS, len(steps))
    chosen = [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]
    return {step: _one_per_branch(step, read_lines(run, step)) for step in chosen}


def read_lines(run: RunData, step: int) -> list[Line]:
    """The dump of a step as dicts, with `num_tokens` in place of ids and log-probs."""
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
    of_prompt: defaultdict[str, list[Attempt]] = defaultdict(list)
    for attempt in run.attempts:
        if attempt.rollouts > attempt.aborted:
            of_prompt[attempt.prompt_id].append(attempt)
    paths = [attempts for attempts in of_prompt.values() if len(attempts) > 1]
    best = [max(attempt.solve_rate for attempt in attempts) for attempts in paths]
    kinds = {
        "learned": [v for v in paths if v[0].solve_rate == 0 and v[-1].solve_rate >= 0.5],
        "never solved": [v for v, most in zip(paths, best, strict=True) if most == 0],
        "lost again": [
            v for v, most in zip(paths, best, strict=True) if most >= 0.5 and v[-1].solve_rate == 0
        ],
    }
    return {name: _spread(max(kind, key=_change), MOST_VISITS) for name, kind in kinds.items() if kind}


def _change(attempts: Sequence[Attempt]) -> tuple[float, int]:
    rates = [attempt.solve_rate for attempt in attempts]
    return max(rates) - min(rates), len(attempts)


def _spread(attempts: list[Attempt], most: int) -> list[Attempt]:
    """At most so many of the attempts, the first and the last among them."""
    count = min(most, len(attempts))
    return [attempts[round(i * (len(attempts) - 1) / max(count - 1, 1))] for i in range(count)]


def answer_at(lines: Sequence[Line], prompt_id: str) -> tuple[Line, Line] | None:
    """The prompt's shared line and one of its answers, a right one where there is one."""
    found = [x for x in lines if x["prompt_id"] == prompt_id and x["text"] is not None]
    return (found[0], max(found, key=lambda line: line["outcome"] == "correct")) if found else None


def _one_per_branch(step: int, lines: Sequence[Line]) -> list[Asked]:
    groups: defaultdict[Any, list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["group"], line["prompt_id"]].append(line)
    by_branch: dict[str, list[Line]] = {}
    for group in groups.values():
        known = by_branch.setdefault(group[0]["branch"], group)
        if len(_telling(group)) > len(_telling(known)):
            by_branch[group[0]["branch"]] = group
    return [Asked(step, group[0], _telling(group)) for _, group in sorted(by_branch.items())]


def _telling(group: Sequence[Line]) -> list[Line]:
    """One answer of each outcome, at most three; those cut by the limit only where there is no other."""
    kinds: dict[str, Line] = {}
    for line in sorted(group, key=lambda line: line["finish"] != "stop"):
        if line["text"] is not None and line["finish"] in ("stop", "length"):
            kinds.setdefault(line["outcome"], line)
    return list(kinds.values())[:3]
