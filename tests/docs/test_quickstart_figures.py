"""The quickstart's figures in README and docs are those of its JSON, over bases and seeds."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from quickstart import RESULTS, between_marks, pages  # noqa: E402


def test_the_pages_say_what_the_json_says() -> None:
    report = json.loads((RESULTS / "quickstart.json").read_text(encoding="utf-8"))
    assert len({run["base"] for run in report["runs"]}) >= 3
    assert len({run["seed"] for run in report["runs"]}) >= 5
    for path, text in pages(report).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"run `python benchmarks/quickstart.py --pages` ({path.name})"
        )


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = "before\n<!-- quickstart.json -->\nold\n<!-- end -->\nafter\n"
    assert between_marks(page, "new\n") == page.replace("old", "new")
