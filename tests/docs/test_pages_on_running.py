"""Metrics, keys, paths and messages that the pages on running name exist."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from hpt_ray.config.schema import Config
from hpt_ray.observe.metrics import METRICS, unknown_metrics
from hpt_ray.observe.trackers.prometheus import SERIES

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["docker", "gpu", "slurm", "monitoring", "security", "troubleshooting"]
SECTIONS = {section.split("/")[0] for section in (metric.name for metric in METRICS)}
SHORT = {"clip_high"}  # keys that a sentence names without their section


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def code(name: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", page(name))


def keys(cls: type = Config, prefix: str = "") -> set[str]:
    found = set()
    for field in fields(cls):
        default = field.default_factory() if callable(field.default_factory) else field.default  # type: ignore[misc]
        found.add(prefix + field.name)
        if is_dataclass(default):
            found |= keys(type(default), f"{prefix}{field.name}.")
    return found


@pytest.mark.parametrize("name", PAGES)
def test_metrics_that_are_named_exist(name: str) -> None:
    words = [word for word in code(name) if re.fullmatch(r"[a-z_]+(/[a-z_<>]+)+", word)]
    metrics = [word for word in words if word.split("/")[0] in SECTIONS]
    assert not unknown_metrics(metrics)
    series = re.findall(r"ray_hpt_ray_\w+", page(name))
    assert set(series) <= {one.exported for one in SERIES}


@pytest.mark.parametrize("name", PAGES)
def test_keys_that_are_named_exist(name: str) -> None:
    known = keys()
    sections = {key.split(".")[0] for key in known if "." in key}
    words = [word.split("=")[0].strip() for word in code(name)]
    named = [
        word for word in words if re.fullmatch(r"[a-z_]+\.[a-z_]+", word) and word.split(".")[0] in sections
    ]
    files = {"data.parquet"}
    assert {
        word for word in named if word not in known and not word.endswith((".py", ".json", ".md"))
    } <= files


@pytest.mark.parametrize("name", PAGES)
def test_paths_that_are_named_exist(name: str) -> None:
    paths = [word for word in code(name) if re.match(r"(deploy|docs|tests|requirements|configs)/", word)]
    paths += [f"docs/{link}" for link in re.findall(r"\]\(([\w./-]+\.md)\)", page(name))]
    for path in paths:
        assert list(ROOT.glob(path.split("#")[0])), path


def texts_of(file: Path) -> list[str]:
    """The texts in a file of source; fields of f-strings are …, as on the page."""
    texts = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            texts.append(
                "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def test_messages_that_are_quoted_are_in_the_source() -> None:
    """The first column of the table of messages; what has "from Ray" behind it is Ray's."""
    table = page("troubleshooting").split("| message |")[1].split("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    found = [pair for cell in cells for pair in re.findall(r"`([^`]+)`( from Ray)?", cell)]
    messages = [message for message, from_ray in found if not from_ray]
    texts = [text for file in (ROOT / "hpt_ray").rglob("*.py") for text in texts_of(file)]
    assert len(messages) > 12
    for message in messages:
        assert any(message in text for text in texts), message


def test_tests_that_are_named_exist() -> None:
    named = [word for word in code("faults") if re.fullmatch(r"test_\w+", word)]
    assert len(named) > 20
    for name in named:
        assert list((ROOT / "tests").rglob(f"{name}.py")), name
