"""The changelog and the citation name the version that the package has."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from hpt_ray import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_the_changelog_has_this_version_and_those_before_it() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "Unreleased"
    assert versions[0] == __version__
    numbers = [tuple(map(int, version.split("."))) for version in versions]
    assert numbers == sorted(numbers, reverse=True)


def test_the_citation_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == __version__
    assert citation["authors"] == [{"name": "The hpt_ray authors"}]
