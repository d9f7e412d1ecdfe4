"""One door to every command: each is there, answers --help at once, and a typo is answered with the nearest."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpt_ray import __version__
from hpt_ray.__main__ import COMMANDS, main

SLOW = "torch transformers tokenizers ray vllm deepspeed scipy matplotlib"
ASK = """
import runpy, sys
slow, module, *words = sys.argv[1:]
sys.argv = [module, *words]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    found = sorted({name.split(".")[0] for name in sys.modules} & set(slow.split()))
    sys.exit(f"imports {found}" if found else end.code)
"""


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """What `python -m WORDS` does, in a process that fails where something slow was imported for it."""
    return subprocess.run(
        [sys.executable, "-c", ASK, SLOW, *words], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("words", [["hpt_ray.main"], ["hpt_ray"], *(["hpt_ray", name] for name in COMMANDS)])
def test_help_comes_at_once(words: list[str]) -> None:
    begin = time.monotonic()
    answer = ask(*words, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("usage: hpt_ray")
    assert time.monotonic() - begin < 10  # under one second on an idle machine; this one may be busy


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["train", "--run.steps=3"], "Keys are written without dashes: run.steps=200"),
        (["plan", "--confg", "a.yaml"], "unrecognized arguments: --confg"),
        (["evaluate", "compare", "A"], "required: B"),
        (["replay"], "required: RUN"),
    ],
)
def test_wrong_words_are_answered_at_once_too(words: list[str], problem: str) -> None:
    answer = ask("hpt_ray", *words)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith(f"usage: hpt_ray {words[0]}")
    assert problem in answer.stderr


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hpt_ray {__version__}\n"


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


def test_train_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in (["--keys", "learner"], 0), (["--keys"], 0), (["--keys", "lerner"], 2):
        with pytest.raises(SystemExit) as ended:
            main(["train", *words])
        assert ended.value.code == code
        said = capsys.readouterr()
        assert ("learner.learning_rate = " in said.out) == (code == 0)
        assert ("run.steps = " in said.out) == (words == ["--keys"])
    assert "Did you mean `learner`?" in said.err


def test_plan_is_the_dry_run_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"run.dir={tmp_path}", "run.name=mine", "run.steps=7"]
    assert main(["plan", *words]) == 0
    planned = capsys.readouterr().out
    assert "Training mine for 7 steps" in planned
    assert main(["train", *words, "--dry-run"]) == 0
    assert capsys.readouterr().out == planned
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.path=./absent", "model.path=./absent: no such folder"),
        ("data.trian=x", "Did you mean `data.train`?"),
        ("num_generations=4", "`group_size`"),
    ],
)
def test_a_slip_is_told_before_anything_slow_is_imported(word: str, message: str) -> None:
    ended = ask("hpt_ray.main", word)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
