"""The site: every link of every page leads somewhere, and every page is in the navigation, without MkDocs."""

from __future__ import annotations

import itertools
import posixpath
import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SITE = runpy.run_path(str(ROOT / "docs" / "site.py"))
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
WRITTEN = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES = [
    *WRITTEN,
    *(path for path in SITE["outside"](WRITTEN) if path.endswith(".md") and path != "README.md"),
]
ANCHORED = re.compile(r"\]\((?!\w+:)([^)\s#]*)#([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def prose(page: str) -> str:
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def anchors(page: str) -> list[str]:
    return [SITE["slug"](heading) for heading in re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    for path in SITE["linked"](page):
        assert (ROOT / path).is_file(), f"{page} links to {path}"


@pytest.mark.parametrize("page", PAGES)
def test_every_anchor_is_a_heading(page: str) -> None:
    for link, anchor in ANCHORED.findall(SITE["CODE"].sub("", (ROOT / page).read_text(encoding="utf-8"))):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) if link else page
        # Once: of two equal headings GitHub and the site name the second one differently.
        assert anchors(target).count(anchor) == 1, f"{page} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_a_list_has_an_empty_line_before_it(page: str) -> None:
    """GitHub shows a list without one; the site would show it as running text."""
    lines = prose(page).splitlines()
    item = re.compile(r"(- |\d+\. )\S")
    for before, line in itertools.pairwise(lines):
        assert not item.match(line) or not before.strip() or item.match(before) or before.startswith("  "), (
            line
        )


def test_the_navigation_has_four_parts_and_every_page_once() -> None:
    home, *parts = CONFIG["nav"]
    assert home == {"Home": "index.md"}
    assert [*{title: None for part in parts for title in part}] == [
        "Tutorials",
        "How-to",
        "Reference",
        "Explanation",
    ]
    entries = [uri for part in parts for pages in part.values() for page in pages for uri in page.values()]
    assert sorted(SITE["in_repository"](uri) for uri in [*home.values(), *entries]) == sorted(PAGES)


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert CONFIG["theme"]["font"] is False
    assert not any(
        path.startswith("http") for key in ("extra_css", "extra_javascript") for path in CONFIG.get(key, [])
    )


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("On a cluster", "on-a-cluster"),
        ("What it's `for`, SFT → GRPO", "what-its-for-sft--grpo"),
        ("a_b", "a_b"),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str) -> None:
    assert SITE["slug"](heading) == anchor


def test_links_become_those_of_the_site() -> None:
    class Page:
        class file:
            src_uri = "cluster.md"

    text = "[a](../README.md#on-a-cluster), [b](data.md), `[c](../x.md)`, [d](https://e.f/g), [h](#i)\n"
    assert SITE["on_page_markdown"](text, Page, {}, []) == text.replace("../README.md", "index.md")
    Page.file.src_uri = "benchmarks/results/mini-small/README.md"
    moved = SITE["on_page_markdown"]("[a](../../../docs/data.md) [b](results.json)", Page, {}, [])
    assert moved == "[a](../../../data.md) [b](results.json)"
