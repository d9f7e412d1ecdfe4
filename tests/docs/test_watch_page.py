"""The figures on the live page are those of its JSON."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from watch import PAGE, RESULT, page  # noqa: E402


def test_the_page_says_what_the_json_says() -> None:
    report = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else None
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text, report), "run `python benchmarks/watch.py`"


def test_figures_are_written_between_the_marks() -> None:
    open_s = {"curves": 1.26, "gate": 0.5}
    report = {
        "machine": {"num_cpus": 2, "load_1min_before": 0.1},
        "settings": {"runs": 200, "steps": 5000, "rollouts": 10**6},
        "result": {"open_s": open_s, "together_s": 4.0, "server_share": 0.004},
    }
    text = page("# Page\n<!-- watch.json -->\nold\n<!-- end -->\nafter\n", report)
    assert "with 1,000,000 rollouts, the views open in seconds:\ncurves 1.3, gate 0.5" in text
    assert "0.4% of a core (2 cores, load 0.1 before" in text
    assert "old" not in text
    assert text.endswith("<!-- end -->\nafter\n")
