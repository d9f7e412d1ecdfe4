"""The page of the suite on several bases says what its results say, and these follow from its runs."""

import json
import sys
from pathlib import Path

import pytest

from hpt_ray.tools.suite.collect import Record, Results
from hpt_ray.tools.suite.report import summary
from hpt_ray.tools.suite.suite import load_suite
from hpt_ray.tools.suite.tables import contrasts

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bases  # noqa: E402

RESULTS = json.loads((bases.FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_page_says_what_the_results_say() -> None:
    text = (bases.FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == bases.page(text, RESULTS), "run `python benchmarks/bases.py`"


def test_the_results_follow_from_the_runs() -> None:
    """Of every run its outcome on each prompt is there."""
    of = Results(load_suite(ROOT / "configs/mini/bases.yaml"), [Record(**run) for run in RESULTS["runs"]])
    assert len(RESULTS["summary"]) > 20
    for ours, theirs in zip(summary(of), RESULTS["summary"], strict=True):
        assert ours == pytest.approx(theirs)
    for one, row in zip(contrasts(of, "t"), RESULTS["differences"], strict=True):
        assert one.p_holm == pytest.approx(row["p_holm"])
        assert one.difference.ci95 == pytest.approx(row["difference"]["ci95"])
