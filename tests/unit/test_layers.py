"""The tree shows the data flow: imports go down only, those inside functions too, and there is no circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "hpt_ray"
# From the ground up; a room may use those before it. The same order is drawn in docs/architecture.md.
FLOORS = (
    ("text", "errors", "types", "config", "utils"),
    ("data", "cluster", "algorithms", "observe"),
    ("reward", "weight_sync", "checkpoint"),
    ("learner", "rollout"),
    ("evaluation", "driver", "tools"),
    ("cli", "main"),
    ("__main__",),
)
ROOMS = [room for floor in FLOORS for room in floor]


def modules() -> dict[str, Path]:
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            one_by_one = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= one_by_one & known.keys() or {node.module}
    return (found & known.keys()) - {"hpt_ray"}  # the version


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def upwards(graph: dict[str, set[str]]) -> list[str]:
    rank = {room: i for i, room in enumerate(ROOMS)}
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if module != "hpt_ray" and rank[room_of(module)] < rank[room_of(other)]
    ]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def test_every_import_goes_down(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 100
    assert {room_of(module) for module in graph} - {"hpt_ray"} == set(ROOMS)
    assert upwards(graph) == []


def test_no_module_is_in_a_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_an_import_upwards_or_in_a_function_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "schema.py"
    file.write_text("def late():\n    from hpt_ray.driver import driver\n    import hpt_ray.rollout.worker\n")
    found = imports(file, modules())
    assert found == {"hpt_ray.driver.driver", "hpt_ray.rollout.worker"}
    assert len(upwards({"hpt_ray.config.schema": found})) == 2


MOST_LINES = {"file": 400, "function": 80}


def test_files_and_functions_stay_small() -> None:
    """A longer one is two things."""
    too_long = []
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES["file"]:
            too_long.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES["function"]:
                    too_long.append(f"{path.name}: {node.name}")
    assert too_long == []
