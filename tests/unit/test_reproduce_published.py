"""The published numbers of the small task follow from its runs, as today's code makes the tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from hpt_ray.tools.suite.collect import Record, Results
from hpt_ray.tools.suite.report import summary
from hpt_ray.tools.suite.suite import load_suite
from hpt_ray.tools.suite.tables import contrasts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks/results/mini-small/results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(published: dict[str, Any]) -> Results:
    records = [Record(**run) for run in published["runs"]]
    return Results(load_suite(ROOT / "configs/mini/small.yaml"), records)


def test_means_and_intervals(published: dict[str, Any], results: Results) -> None:
    assert len(published["summary"]) == 12 * 11  # methods with base × sets and averages
    for ours, theirs in zip(summary(results), published["summary"], strict=True):
        assert ours.pop("over") == "seeds"  # made before outcomes of prompts were kept
        assert ours == pytest.approx(theirs)


def test_differences_and_their_tests(published: dict[str, Any], results: Results) -> None:
    found = contrasts(results, "t")
    assert [(c.method, c.measure) for c in found] == [
        (d["method"], d["measure"]) for d in published["differences"]
    ]
    for ours, theirs in zip(found, published["differences"], strict=True):
        assert ours.p_holm == pytest.approx(theirs["p_holm"])
        for name, value in theirs["difference"].items():
            assert getattr(ours.difference, name) == pytest.approx(value)
