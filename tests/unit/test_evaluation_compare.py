"""Exclusive solves and paired differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from hpt_ray.cli.evaluate import main
from hpt_ray.errors import UserError
from hpt_ray.evaluation.report import compare, comparison_table
from hpt_ray.evaluation.results import PromptResult, write_results


def prompt(i: int, correct: int, n: int = 1, level: str | None = None) -> PromptResult:
    outcomes = {"wrong": n - correct, "no_answer": 0, "unparsable": 0, "timeout": 0, "error": 0}
    return PromptResult(
        "math500",
        f"q/{i}",
        "math500",
        level,
        f"hash{i}",
        n,
        correct,
        **outcomes,
        mean_tokens=9.5,
        truncated=0,
    )


def test_exclusive_solves_by_level_as_in_table_4():
    levels = ["1", "1", "2", "2", "2"]
    a = [prompt(i, c, level=level) for i, (c, level) in enumerate(zip([1, 0, 1, 1, 0], levels, strict=True))]
    b = [prompt(i, c, level=level) for i, (c, level) in enumerate(zip([1, 1, 0, 0, 0], levels, strict=True))]
    rows, unshared = compare(a, b)
    assert [(r.level, r.prompts, r.only_a, r.only_b, r.solved_a, r.solved_b) for r in rows] == [
        ("1", 2, 0, 1, 1, 2),
        ("2", 3, 2, 0, 2, 0),
        ("all", 5, 2, 1, 3, 2),
    ]
    assert rows[-1].difference.value == pytest.approx(0.2)
    differences = [0, -1, 1, 1, 0]
    assert rows[-1].difference.half_width == pytest.approx(
        1.959964 * np.std(differences, ddof=1) / 5**0.5, rel=1e-6
    )
    assert unshared == {"only in A": 0, "only in B": 0}


def test_with_several_samples_half_of_them_solve_a_prompt():
    rows, _ = compare([prompt(0, 2, n=4), prompt(1, 1, n=4)], [prompt(0, 1, n=4), prompt(1, 3, n=4)])
    assert (rows[0].solved_a, rows[0].solved_b, rows[0].only_a, rows[0].only_b) == (1, 1, 1, 1)
    assert rows[0].difference.value == pytest.approx((0.25 - 0.5) / 2)


def test_the_order_of_rows_does_not_matter_and_unshared_prompts_are_counted():
    a = [prompt(i, i % 2) for i in range(6)]
    b = [prompt(i, 1) for i in reversed(range(2, 9))]
    rows, unshared = compare(a, b)
    assert (rows[0].prompts, rows[0].only_a, rows[0].only_b) == (4, 0, 2)
    assert unshared == {"only in A": 2, "only in B": 3}


def test_different_prompts_are_refused():
    with pytest.raises(UserError, match="no prompt in common"):
        compare([prompt(1, 0)], [prompt(2, 0)])
    with pytest.raises(UserError, match="different references"):
        compare([prompt(1, 0)], [replace(prompt(1, 0), reference_hash="other")])


def test_the_command_reads_folders_and_files(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
    write_results(tmp_path / "a", [prompt(i, 1, level="5") for i in range(3)])
    file = write_results(tmp_path / "b", [prompt(i, 0, level="5") for i in range(3)])
    assert main(["compare", str(tmp_path / "a"), str(file), "--json", str(tmp_path / "c.json")]) == 0
    assert "+3/−0" in capsys.readouterr().out
    assert '"only_a": 3' in (tmp_path / "c.json").read_text()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "missing")]) == 2
    assert "missing: no result file" in capsys.readouterr().err


def test_the_table_shows_every_level():
    mine = [prompt(0, 1, level="3"), prompt(1, 1, level="4"), prompt(9, 1)]
    rows, unshared = compare(mine, [prompt(0, 0, level="3"), prompt(1, 1, level="4")])
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(rows, unshared, a="A", b="B"))
    text = console.export_text()
    assert text.count("+1/−0") == 2
    assert "1 prompts are only in A" in text
