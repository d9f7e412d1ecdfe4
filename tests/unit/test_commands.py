"""One door to every command: each is there, answers --help, and a typo is answered with the nearest."""

from __future__ import annotations

import pytest

from hpt_ray.cli.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"mini-base"}))
def test_every_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "answer"),
    [(["trian"], "Did you mean `train`?"), ([], "a command is needed"), (["xyz"], "no command `xyz`.")],
)
def test_a_typo_is_answered(words: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert answer in capsys.readouterr().err


def test_arguments_go_to_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "algorithm.name=grp"]) == 2
    assert "Did you mean" in capsys.readouterr().err + capsys.readouterr().out
