"""What the forgetting benchmark makes of its runs, and that the page says what its JSON says."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import forgetting  # noqa: E402


def done(runs, accuracy):
    return [
        {
            **asdict(run),
            "accuracy": {**dict(zip(forgetting.BOTH, accuracy(run), strict=True)), "sets": {}},
            "failures": {},
        }
        for run in runs
    ]


def accuracy(run):
    """HPT is 0.3 better in distribution; a pull of 20 keeps all that GRPO keeps, one of 80 learns nothing.

    The rehearsal of 8 rows keeps half of what HPT loses at no cost, that of 32 all of it and learns less.
    """
    if run.method == "grpo":
        return 0.6, 0.95
    if run.rehearsal:
        return {8: (0.9, 0.825), 32: (0.7, 0.95)}[run.rehearsal]
    noise = 0.01 * (run.base % 3) + 0.001 * run.seed
    return {0.0: (0.9, 0.7), 5.0: (0.9, 0.8), 20.0: (0.88 + noise, 0.95), 80.0: (0.5, 1.0)}[run.pull]


def test_the_strength_is_chosen_first_and_reported_on_other_bases():
    first = list(forgetting.planned([]))
    assert {run.base for run in first} == {1, 2, 3, 4}
    assert {run.split for run in first} == {"validation"}
    runs = done(first, accuracy)
    pull, rehearsal = ("hpt", 20.0, 0), ("hpt", 0.0, 8)
    assert forgetting.choices(runs[:-1]) == {"pull": pull}
    assert forgetting.choices(runs) == {"pull": pull, "rehearsal": rehearsal}
    more = [run for run in forgetting.planned(runs) if forgetting.found(runs, run) is None]
    assert {run.base for run in more} == {101, 102, 103}
    assert {run.split for run in more} == {"test"}
    assert {(run.pull, run.rehearsal) for run in more} == {(0.0, 0), (20.0, 0), (0.0, 8)}
    assert forgetting.result(runs)["report"] == {"bases": [], "runs": 0, "of": 36, "accuracy": {}}
    found = forgetting.result(runs + done(more, accuracy))
    assert found["chosen"] == {"pull": "hpt, κ = 20", "rehearsal": "hpt, M = 8"}
    assert len(found["differences"]) == 6
    assert found["differences"]["hpt, M = 8: out of distribution, against hpt"]["mean"] == pytest.approx(
        0.125
    )
    against_hpt = found["differences"]["hpt, κ = 20: in distribution, against hpt"]
    # Bases 101, 102, 103 are +0.001, −0.019 and −0.009 off, the seeds' mean included.
    assert against_hpt["bases"] == pytest.approx({101: 0.001, 102: -0.019, 103: -0.009})
    assert against_hpt["mean"] == pytest.approx(-0.009)
    half = 4.302653 * 0.01 / 3**0.5  # t of two degrees of freedom, and the bases' standard deviation
    assert against_hpt["interval"] == pytest.approx([-0.009 - half, -0.009 + half], abs=1e-6)
    assert found["differences"]["hpt, κ = 20: out of distribution, against grpo"]["mean"] == pytest.approx(
        0.0
    )


def test_the_table_has_a_line_a_method():
    runs = done(forgetting.planned([]), accuracy)
    lines = forgetting.table({"result": forgetting.result(runs)}).splitlines()
    assert lines[0].startswith("Bases 1, 2, 3, 4, validation prompts, 28 of 28 runs")
    assert "| grpo | 60.0% (60.0% to 60.0%) | 95.0% (95.0% to 95.0%) |" in lines
    assert sum(line.startswith("| hpt, κ") for line in lines) == 3
    assert sum(line.startswith("| hpt, M") for line in lines) == 2


@pytest.mark.skipif(not forgetting.RESULT.exists(), reason="not measured yet")
def test_the_page_says_what_the_json_says():
    text = forgetting.PAGE.read_text(encoding="utf-8")
    assert text == forgetting.page(text, json.loads(forgetting.RESULT.read_text(encoding="utf-8"))), (
        "run `python benchmarks/forgetting.py --pages`"
    )
