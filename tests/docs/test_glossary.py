"""The glossary: sorted, one line a term, and each name it gives is a key, a metric or a column that exists."""

from __future__ import annotations

import re
from pathlib import Path

from hpt_ray.config.load import known_keys
from hpt_ray.observe.metrics import METRICS
from hpt_ray.observe.rollout_dump import SCHEMA

PAGE = Path(__file__).resolve().parents[2] / "docs" / "glossary.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
][1:]
NAMES = {*known_keys(), *(metric.name for metric in METRICS), *SCHEMA.names}


def test_the_terms_people_look_for_are_there_in_order() -> None:
    terms = [row[0] for row in ROWS]
    assert terms == sorted(terms, key=str.lower)
    assert {
        *("prompt", "response", "rollout", "demonstration", "reward", "advantage", "gate", "share solved"),
        *("loss mask", "truncated", "reference policy", "off-policy steps", "entropy", "KL divergence"),
    } <= {*terms}


def test_every_term_has_one_short_line_and_names_that_exist() -> None:
    for term, _, meaning, where in ROWS:
        assert meaning.endswith("."), term
        assert len(meaning.split()) <= 30, term
        names = re.findall(r"`([^`]+)`", where)
        assert names, term
        assert {*names} <= NAMES, f"{term}: {set(names) - NAMES}"
