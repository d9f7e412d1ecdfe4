"""The figures on the page of faults are those of its JSON."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from chaos import PAGE, RESULT, page  # noqa: E402


def test_the_page_says_what_the_json_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text, json.loads(RESULT.read_text(encoding="utf-8"))), (
        "run `python benchmarks/chaos.py --pages`"
    )
