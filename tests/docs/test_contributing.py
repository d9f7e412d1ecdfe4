"""CONTRIBUTING.md is true: its walks end with green tests when they are followed to the letter, and its paths exist."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpt_ray.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str, under: str) -> list[str]:
    """The code blocks of a section, in order."""
    section = re.split(r"\n###? ", PAGE.split(f"### {under}\n")[1])[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def follow(commands: str, folder: Path, package: Path) -> str:
    """Run the commands of a block in `folder` with the package of the checkout `package`; what they print."""
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": python, "PYTHONPATH": str(package), "COLUMNS": "120"}
    finished = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The working directory of a user who has written both files."""
    record, test = blocks("python", "From a file of yours")
    (tmp_path / "my.py").write_text(record, encoding="utf-8")
    (tmp_path / "test_my.py").write_text(test, encoding="utf-8")
    return tmp_path


def test_the_walk_from_outside_ends_with_green_tests(outside: Path) -> None:
    (commands,) = blocks("bash", "From a file of yours")
    *checks, train = commands.splitlines()
    assert "train algorithm.name" in train  # tests/cluster/test_parts_from_outside.py trains with it
    said = follow("\n".join(checks), outside, ROOT)
    assert "1 passed" in said
    assert "raft: reward-ranked fine-tuning  (mode: default)" in said
    # Rewards 1, 0, 0, 1: the wrong rollouts add nothing.
    assert "exactly 0: rollout 2, rollout 3" in said
    assert f"python:{outside}/my.py:RAFT" in "".join(said.split())  # a long path is wrapped within its column


def test_a_wrong_example_would_be_noticed(outside: Path) -> None:
    record = (outside / "my.py").read_text(encoding="utf-8")
    wrong = record.replace('advantage="correct"', 'advantage="signed"')
    assert wrong != record
    (outside / "my.py").write_text(wrong, encoding="utf-8")
    with pytest.raises(AssertionError, match="1 failed"):
        follow("python -m pytest -q test_my.py", outside, ROOT)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the walk's changes."""
    copy = tmp_path / "checkout"
    leave_out = shutil.ignore_patterns("__pycache__", ".*", "build", "runs", "results", "images")
    for folder in ("hpt_ray", "configs", "deploy", "docs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=leave_out)
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / file, copy)
    (changes,) = blocks("diff", "Among ours")
    (tmp_path / "raft.patch").write_text(changes, encoding="utf-8")
    follow("git apply --verbose ../raft.patch", copy, copy)
    return copy


def test_the_walk_changes_what_it_says(checkout: Path) -> None:
    assert "\nraft           rollout  none   current   correct " in follow(
        "python -m hpt_ray explain --all", checkout, checkout
    )


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_the_walk_among_ours_ends_with_green_tests(checkout: Path) -> None:
    assert "raft" not in ALGORITHMS, "the example has become real: choose another one"
    (commands,) = blocks("bash", "Among ours")
    said = follow(commands, checkout, checkout)
    assert re.search(r"\n[3-9]\d\d passed in", said), said
    assert "`rloo`, `raft`, `ppo`" in (checkout / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_tables_and_records_that_are_named_exist() -> None:
    rows = [
        line.split("|")[2:4] for line in PAGE.split("## Adding another part")[1].splitlines() if "`" in line
    ]
    package, found = "", 0
    for tables, record in (row for row in rows if len(row) == 2):
        package = next(iter(re.findall(r"of `([\w.]+)`", tables)), package)  # else that of the row above
        module = importlib.import_module(package)
        names = re.findall(r"`([A-Z_]+)`", tables)
        assert names
        for name in names:
            kinds = {type(part).__name__ for part in getattr(module, name).values()}
            assert kinds == set(re.findall(r"`(\w+)`", record)), name
            found += 1
    assert found == 12


def test_named_paths_exist() -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("| ")]
    for line in table:
        for pattern in re.findall(r"tests/[\w/*.]+", line):
            assert list(ROOT.glob(pattern)), f"{pattern} in CONTRIBUTING.md"
        for folder in re.findall(r"`([a-z_]+/[\w/.]*|[a-z_]+\.py)`", line.split("|")[1]):
            assert (ROOT / "hpt_ray" / folder).exists() or (ROOT / folder).exists(), folder
    assert len(table) > 10
