"""docs/architecture.md is true: every file and name on it exists, and the drawing has every package."""

import importlib
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FLOORS = runpy.run_path(str(ROOT / "tests" / "unit" / "test_layers.py"))["FLOORS"]


def stops() -> list[tuple[str, str]]:
    """(file, name) of every stop: `data/sampler.py` `Sampler`."""
    return re.findall(r"`([a-z_/]+\.py)` `([A-Za-z_.]+)`", PAGE)


def test_every_stop_exists() -> None:
    assert len(stops()) >= 18
    for file, name in stops():
        found = importlib.import_module("hpt_ray." + file.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)


def test_every_file_that_is_mentioned_exists() -> None:
    for file in re.findall(r"`((?:tests/)?[a-z_/]+\.py)`", PAGE):
        assert (ROOT / "hpt_ray" / file).is_file() or (ROOT / file).is_file(), file


def test_the_drawing_has_every_package() -> None:
    drawing = PAGE.split("```")[1]
    rooms = [room for line in drawing.strip("\n").splitlines() for room in re.split(r"\s{2,}", line)[1:]]
    drawn = {room for part in rooms for room in part.split()}
    assert {room for floor in FLOORS for room in floor} <= drawn
