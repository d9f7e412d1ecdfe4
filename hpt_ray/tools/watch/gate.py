"""The gate at work: prompts × steps, by share solved and by what trained.

In: the attempts of a run (prompt_history.jsonl). Out: a grid of at most so many rows and columns, whatever the run's
size: a cell is one attempt, or the mean over neighbouring prompts and steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MOST_ROWS, MOST_COLUMNS = 240, 400
ORDERS = ("solved", "met", "last", "name")


@dataclass(frozen=True, slots=True)
class Attempts:
    """Columns [N], in the order of training. `prompt` is an index into `names`."""

    names: np.ndarray  # [Q] ids of prompts, in the order in which they were met
    prompt: np.ndarray
    step: np.ndarray
    column: np.ndarray  # the step, or the number of the attempt from 1
    share: np.ndarray  # of the graded rollouts that are correct; NaN where none was graded
    demo: np.ndarray  # offline ratio β/(α + β); NaN where nothing trained

    @classmethod
    def of(cls, history: pa.Table, *, by_attempt: bool = False) -> Attempts:
        ids = history["prompt_id"].combine_chunks().dictionary_encode()
        prompt = ids.indices.to_numpy().astype(int)
        step, correct, rollouts, alpha, beta = (
            history[name].cast(pa.float64()).to_numpy()
            for name in ("step", "correct", "rollouts", "rollout_weight", "demo_weight")
        )
        if "aborted" in history.column_names:  # older files do not say
            rollouts = rollouts - pc.fill_null(history["aborted"], 0).cast(pa.float64()).to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(rollouts > 0, correct / rollouts, np.nan)
            demo = np.where(alpha + beta != 0, beta / (alpha + beta), np.nan)
        step = step.astype(int)
        column = _numbers_of_attempts(prompt) if by_attempt else step
        return cls(ids.dictionary.to_numpy(zero_copy_only=False), prompt, step, column, share, demo)


def _numbers_of_attempts(prompt: np.ndarray) -> np.ndarray:
    """Example: `[0, 1, 0]` gives `[1, 1, 2]`."""
    order = np.argsort(prompt, kind="stable")
    ordered = prompt[order]
    begins = np.searchsorted(ordered, ordered)
    numbers = np.empty(len(prompt), int)
    numbers[order] = np.arange(len(prompt)) - begins + 1
    return numbers


def _order(attempts: Attempts, by: str) -> np.ndarray:
    """The indices of the prompts from the top of the map to its foot."""
    size = len(attempts.names)
    if by == "name":
        return np.argsort(attempts.names.astype(str), kind="stable")
    if by == "met":
        return np.arange(size)
    key = np.full(size, np.inf)
    if by == "last":
        key[attempts.prompt] = -np.nan_to_num(attempts.share)  # of equal indices the last one stays
    else:
        solved = attempts.share > 0
        np.minimum.at(key, attempts.prompt[solved], attempts.column[solved])
    return np.argsort(key, kind="stable")


def gate_map(
    history: pa.Table,
    *,
    order: str = "solved",
    by_attempt: bool = False,
    find: str = "",
    rows: tuple[int, int] = (0, 10**9),
    columns: tuple[int, int] = (0, 10**9),
) -> dict[str, Any]:
    """The part of the map between `rows` (places, the second not included) and `columns` (steps or attempts,
    both included).

    `cells` are `[row, column, attempts, share, demo, step]`: places in the grid, how many attempts, means in percent
    (None where there is none), and the last step. `rows`, `columns`: [first, size of one cell, how many cells].
    Raises `ValueError` for an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order}: use one of {', '.join(ORDERS)}")
    if not len(history):
        return {"prompts": 0, "names": [], "cells": [], "rows": [0, 1, 0], "columns": [0, 1, 0]}
    attempts = Attempts.of(history, by_attempt=by_attempt)
    ranked = _order(attempts, order)
    if find:
        ranked = ranked[[find.lower() in str(name).lower() for name in attempts.names[ranked]]]
    place = np.full(len(attempts.names), -1)
    place[ranked] = np.arange(len(ranked))
    row, column = place[attempts.prompt], attempts.column
    top, bottom = max(0, rows[0]), min(len(ranked), rows[1])
    left, right = max(int(column.min()), columns[0]), min(int(column.max()), columns[1])
    height = max(1, -(-(bottom - top) // MOST_ROWS))
    width = max(1, -(-(right - left + 1) // MOST_COLUMNS))
    num_columns = max(0, -(-(right - left + 1) // width))
    inside = (row >= top) & (row < bottom) & (column >= left) & (column <= right)
    cell = (row[inside] - top) // height * num_columns + (column[inside] - left) // width
    cells, where = np.unique(cell, return_inverse=True)
    counts = np.bincount(where, minlength=len(cells))
    last = np.zeros(len(cells), int)
    np.maximum.at(last, where, attempts.step[inside])
    found = zip(
        (cells // max(num_columns, 1)).tolist(),
        (cells % max(num_columns, 1)).tolist(),
        counts.tolist(),
        _percent(attempts.share[inside], where, len(cells)),
        _percent(attempts.demo[inside], where, len(cells)),
        last.tolist(),
        strict=True,
    )
    names = attempts.names[ranked[top:bottom]].tolist() if height == 1 else []
    return {
        "prompts": len(ranked),
        "names": names,
        "cells": list(found),
        "rows": [top, height, max(0, -(-(bottom - top) // height))],
        "columns": [left, width, num_columns],
    }


def _percent(values: np.ndarray, where: np.ndarray, size: int) -> list[int | None]:
    """Means by cell in percent, without what is NaN."""
    there = np.isfinite(values)
    num = np.bincount(where[there], minlength=size)
    sums = np.bincount(where[there], values[there], minlength=size)
    means = np.round(100 * sums / np.maximum(num, 1)).astype(int)
    return [mean if n else None for mean, n in zip(means.tolist(), num.tolist(), strict=True)]
