"""CONTRIBUTING.md is true: its example algorithm runs as written, and the paths it names exist."""

import re
from pathlib import Path

import pytest

from hpt_ray.algorithms import ALGORITHMS
from hpt_ray.cli.explain import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of the section on algorithms, in order."""
    section = PAGE.split("## Adding an algorithm")[1]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_the_example_algorithm_works_as_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition, golden = blocks("python")
    (configuration,) = blocks("yaml")
    file: dict = {}
    exec(compile(definition, "raft.py", "exec"), file)
    assert file["RAFT"].name not in ALGORITHMS, "the example has become real: choose another one"
    monkeypatch.setitem(ALGORITHMS, file["RAFT"].name, file["RAFT"])

    test: dict = {}
    exec(compile(golden, "test_algorithms.py", "exec"), test)
    tests = [value for name, value in test.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()

    (tmp_path / "quickstart.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    (tmp_path / "algorithm").mkdir()
    overlay = tmp_path / "algorithm" / "raft.yaml"
    overlay.write_text(configuration)
    assert main(["--config", str(overlay)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("raft: reward-ranked fine-tuning")
    # Rewards 1, 0, 0, 1: the wrong rollouts add nothing.
    assert "exactly 0: rollout 2, rollout 3" in said


def test_a_wrong_example_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    definition, golden = blocks("python")
    file: dict = {}
    exec(compile(definition.replace('"correct"', '"signed"'), "raft.py", "exec"), file)
    monkeypatch.setitem(ALGORITHMS, "raft", file["RAFT"])
    test: dict = {}
    exec(compile(golden, "test_algorithms.py", "exec"), test)
    with pytest.raises(AssertionError):
        test["test_raft_equals_its_paper"]()


def test_named_paths_exist() -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("| ")]
    for line in table:
        for pattern in re.findall(r"tests/[\w/*.]+", line):
            assert list(ROOT.glob(pattern)), f"{pattern} in CONTRIBUTING.md"
        for folder in re.findall(r"`([a-z_]+/[\w/.]*|[a-z_]+\.py)`", line.split("|")[1]):
            assert (ROOT / "hpt_ray" / folder).exists() or (ROOT / folder).exists(), folder
    assert len(table) > 10
