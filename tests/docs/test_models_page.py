"""The tables of docs/models.md are those of their JSON; that of families has every family that the test knows."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "cluster")]

import batch_invariant  # noqa: E402
from architectures import KEPT, PAGE, page  # noqa: E402
from quickstart import RESULTS  # noqa: E402
from test_architectures import FAMILIES, REFUSED  # noqa: E402


def test_the_page_says_what_the_json_says() -> None:
    report = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))
    assert page(report) == PAGE.read_text(encoding="utf-8"), (
        "run `python benchmarks/architectures.py --pages`"
    )
    families = report["families"]
    assert families.keys() == FAMILIES.keys() | REFUSED.keys()
    for name in FAMILIES:
        assert families[name]["largest_gap"] < 1e-5
        assert all(families[name][key] for key in KEPT)


def test_the_page_says_where_sampler_and_learner_differ_as_the_json_does() -> None:
    report = json.loads((RESULTS / "batch_invariant.json").read_text(encoding="utf-8"))
    assert batch_invariant.page(report) == PAGE.read_text(encoding="utf-8"), (
        "run `python benchmarks/batch_invariant.py --pages`"
    )
    assert report["result"]["gap_max"]["batch_invariant"] == 0
