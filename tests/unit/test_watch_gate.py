"""The gate map as numbers: which prompt is where, what a cell says, and that it stays small."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest

from hpt_ray.tools.watch.gate import MOST_COLUMNS, MOST_ROWS, gate_map


def history(*lines: tuple[int, str, int, float, float]) -> pa.Table:
    """Lines of (step, prompt, correct of 4, α, β)."""
    names = ("step", "prompt_id", "correct", "rollout_weight", "demo_weight")
    return pa.Table.from_pylist(
        [{**dict(zip(names, line, strict=True)), "rollouts": 4, "aborted": 0} for line in lines]
    )


LINES = history(
    (1, "hard", 0, 0.0, 1.0),
    (1, "easy", 4, 1.0, 0.0),
    (2, "late", 0, 0.0, 1.0),
    (3, "hard", 0, 0.0, 0.0),
    (4, "late", 2, 1.0, 1.0),
)


def test_rows_are_ordered_by_the_first_correct_response() -> None:
    found = gate_map(LINES)
    assert found["names"] == ["easy", "late", "hard"]
    assert found["columns"] == [1, 1, 4]
    assert found["cells"] == [
        (0, 0, 1, 100, 0, 1),
        (1, 1, 1, 0, 100, 2),
        (1, 3, 1, 50, 50, 4),
        (2, 0, 1, 0, 100, 1),
        (2, 2, 1, 0, None, 3),  # trained nothing
    ]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("met", ["hard", "easy", "late"]),
        ("name", ["easy", "hard", "late"]),
        ("last", ["easy", "late", "hard"]),
    ],
)
def test_other_orders(order: str, names: list[str]) -> None:
    assert gate_map(LINES, order=order)["names"] == names


def test_attempts_in_place_of_steps() -> None:
    found = gate_map(LINES, by_attempt=True, order="met")
    assert [(row, column) for row, column, *_ in found["cells"]] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]


def test_a_part_of_the_map() -> None:
    found = gate_map(LINES, rows=(1, 3), columns=(2, 3))
    assert (found["names"], found["columns"]) == (["late", "hard"], [2, 1, 2])
    assert [cell[:2] for cell in found["cells"]] == [(0, 0), (1, 1)]
    assert gate_map(LINES, find="LAT")["names"] == ["late"]


def test_nothing_to_show_and_a_wrong_order() -> None:
    assert gate_map(pa.table({}))["cells"] == []
    assert gate_map(LINES, find="nowhere")["cells"] == []
    with pytest.raises(ValueError, match="order=colour"):
        gate_map(LINES, order="colour")


def test_a_rollout_that_was_aborted_is_not_wrong() -> None:
    line = {
        "step": 1,
        "prompt_id": "q",
        "correct": 4,
        "rollouts": 8,
        "aborted": 4,
        "rollout_weight": 1,
        "demo_weight": 0,
    }
    assert gate_map(pa.Table.from_pylist([line]))["cells"] == [(0, 0, 1, 100, 0, 1)]


def test_a_large_run_is_averaged_to_a_small_grid() -> None:
    random = np.random.default_rng(0)
    size = 500_000
    table = pa.table(
        {
            "step": np.arange(size) // 100 + 1,
            "prompt_id": [f"gsm8k/{i}" for i in random.integers(7000, size=size)],
            "correct": random.integers(0, 9, size),
            "rollouts": np.full(size, 8),
            "rollout_weight": np.ones(size),
            "demo_weight": np.zeros(size),
        }
    )
    begin = time.monotonic()
    found = gate_map(table)
    assert time.monotonic() - begin < 10  # half a second on an idle machine
    assert found["prompts"] == 7000
    assert found["rows"][2] <= MOST_ROWS
    assert found["columns"][2] <= MOST_COLUMNS
    assert sum(cell[2] for cell in found["cells"]) == size
    assert all(0 <= cell[3] <= 100 and cell[4] == 0 for cell in found["cells"])
