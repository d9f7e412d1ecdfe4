"""docs/security.md names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(tests/\S+\.py)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8")))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
