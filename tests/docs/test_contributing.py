"""CONTRIBUTING.md is true: its example algorithm runs as written, and the paths it names exist."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpt_ray.algorithms import ALGORITHMS
from hpt_ray.cli.explain import main
from hpt_ray.utils import plugins

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of the section on algorithms, in order."""
    section = PAGE.split("## Adding an algorithm")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's working directory; what is loaded from it is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setenv(plugins.VARIABLE, "")
    assert "raft" not in ALGORITHMS, "the example has become real: choose another one"
    yield tmp_path
    ALGORITHMS.pop("raft", None)


def golden_test() -> None:
    _, golden = blocks("python")
    test: dict = {}
    exec(compile(golden, "test_algorithms.py", "exec"), test)
    tests = [value for name, value in test.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_the_example_algorithm_works_as_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definition, _ = blocks("python")
    (configuration,) = blocks("yaml")
    (folder / "raft.py").write_text(definition, encoding="utf-8")
    (folder / "raft.yaml").write_text(configuration)
    assert main(["--config", str(ROOT / "configs" / "quickstart.yaml"), "--config", "raft.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("raft: reward-ranked fine-tuning")
    # Rewards 1, 0, 0, 1: the wrong rollouts add nothing.
    assert "exactly 0: rollout 2, rollout 3" in said
    golden_test()


def test_a_wrong_example_would_be_noticed(folder: Path) -> None:
    definition, _ = blocks("python")
    wrong = definition.replace('advantage="correct"', 'advantage="signed"')
    assert wrong != definition
    (folder / "raft.py").write_text(wrong, encoding="utf-8")
    plugins.load(["raft.py"])
    with pytest.raises(AssertionError):
        golden_test()


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
