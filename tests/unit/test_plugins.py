"""A user's file adds parts, and everything that knows parts by name knows them: no table has a list beside it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from hpt_ray.algorithms import make_estimator
from hpt_ray.cli import explain
from hpt_ray.cli.train import configured
from hpt_ray.errors import UserError
from hpt_ray.main import main
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import start_trackers
from hpt_ray.utils import plugins

PARTS = '''
from pathlib import Path

from hpt_ray.algorithms import ADVANTAGES, ALGORITHMS, GATES, Algorithm, Gate, Part, Recipe, Term
from hpt_ray.observe.trackers import TRACKERS, TrackerKind
from hpt_ray.types import Decision

ADVANTAGES["doubled"] = Part(lambda view: 2 * view.rewards, "Â = 2R")

ALGORITHMS["raft"] = Algorithm(
    name="raft",
    title="reward-ranked fine-tuning",
    formula="−(1/Nn) Σ_i 2R_i (1/L_i) Σ_t log π_θ(τ_it)",
    source="arXiv 2304.06767",
    gate="lucky",
    default=Recipe((Term("rollouts", "doubled", "current", loss_aggregation="seq-mean-token-mean"),)),
)


def lucky(group, gamma, history):
    solved, total = group.num_correct, len(group.rollouts)
    return Decision(1.0 if solved else 0.0, 0.0, solved, total, "lucky" if solved else "unlucky")


GATES["lucky"] = Gate(function=lucky, data="rollouts of prompts with a right one", demonstrations="ignored")


class Lines:
    """Appends the steps to a file in the run folder."""

    def __init__(self, folder, config, first_step):
        self._file = folder.root / "lines.txt"

    def log(self, step, metrics):
        with self._file.open("a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")

    def close(self):
        pass


TRACKERS["lines"] = TrackerKind(Lines, "one line a step")
'''
NAMES = ("algorithm.name=raft", "observe.trackers=[lines]")


@pytest.fixture
def parts(tmp_path: Path) -> str:
    file = tmp_path / "parts.py"
    file.write_text(PARTS, encoding="utf-8")
    return f"run.plugins=[{file}]"


def test_an_algorithm_of_a_user_is_explained(parts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main([parts, *NAMES]) == 0
    text = capsys.readouterr().out
    assert "\nraft: reward-ranked fine-tuning  (mode: default)" in text
    assert "advantage doubled                Â = 2R" in text
    assert "gate lucky   rollouts of prompts with a right one" in text
    assert "α = 1, β = 0 (lucky)" in text
    assert "α = 0, β = 0 (unlucky)" in text
    # Rewards 1, 0, 0, 1: rollouts 2 and 3 have Â = 0.
    assert "exactly 0: rollout 2, rollout 3" in text


def test_the_tables_show_what_was_added(parts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main(["--all"]) == 0
    assert "raft" not in capsys.readouterr().out
    assert explain.main(["--all", parts]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["raft", "rollout", "none", "current", "doubled", "none", "seq-mean-token-mean", "lucky"] in words
    assert ["lucky", "rollouts", "of", "prompts", "with", "a", "right", "one"] in words
    assert ["lines", "one", "line", "a", "step"] in words


def test_a_dry_run_accepts_what_was_added(parts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", parts, *NAMES]) == 0
    assert main(["--dry-run", parts, "selection.gate=lucky"]) == 0
    assert "raft" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algorithm.name=raff", "algorithm.name=raff: no such name. Did you mean raft"),
        ("selection.gate=luck", "selection.gate=luck: no such name. Did you mean lucky"),
        ("algorithm.rollout_advantage=double", "rollout_advantage=double: no such name. Did you mean doubled"),
        ("observe.trackers=[line]", "observe.trackers=line: no such name. Did you mean lines"),
    ],
)  # fmt: skip
def test_a_typo_is_answered_with_the_nearest_name(
    parts: str, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", parts, word]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (('gate="lucky"', 'gate="luck"'), "gate of the algorithm raft=luck: no such name. Did you mean lucky"),
        (('"doubled", "current"', '"doubled", "curent"'), "denominator of the algorithm raft=curent: no such name"),
    ],
)  # fmt: skip
def test_an_algorithm_of_unknown_parts_is_the_users_to_fix(
    wrong: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "parts.py"
    file.write_text(PARTS.replace(*wrong), encoding="utf-8")
    assert explain.main([f"run.plugins=[{file}]", *NAMES]) == 2
    assert message in capsys.readouterr().err


def test_a_tracker_of_a_user_gets_every_step(parts: str, tmp_path: Path) -> None:
    plugins.load([str(tmp_path / "parts.py")])
    folder = RunFolder.create(tmp_path, "demo")
    trackers = start_trackers(["lines"], folder, {})
    trackers.log(1, {"reward/mean": 0.5})
    trackers.close()
    assert trackers.failures == {}
    assert (folder.root / "lines.txt").read_text() == "1 ['reward/mean']\n"


def test_a_file_is_imported_once_and_known_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "once.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.n').open('a').write('x')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        plugins.load(["once.py"]) == plugins.load([str(tmp_path / "once.py")]) == [str(tmp_path / "once.py")]
    )
    assert (tmp_path / "once.n").read_text() == "x"


def test_processes_of_the_run_know_the_same_parts(parts: str, tmp_path: Path) -> None:
    assert plugins.environment() == {}
    plugins.load([str(tmp_path / "parts.py")])
    code = (
        "from hpt_ray.utils.plugins import load_inherited; load_inherited(); "
        "from hpt_ray.algorithms import make_estimator; print(make_estimator('raft').terms[0].advantage)"
    )
    inherited = {**os.environ, **plugins.environment()}
    child = subprocess.run(
        [sys.executable, "-c", code], env=inherited, capture_output=True, text=True, timeout=120, check=True
    )
    assert child.stdout == "doubled\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (\n", ":1 cannot be imported: SyntaxError: '(' was never closed"),
        ("x = 1\nimport no_such_package\n", ":2 cannot be imported: ModuleNotFoundError: No module named"),
        ("def f():\n    raise ValueError('why')\n\n\nf()\n", ":2 cannot be imported: ValueError: why"),
        (None, " is not there. A relative path is relative to the working directory; on a cluster"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_the_users_to_fix(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        plugins.load([str(file)])
    assert str(caught.value).startswith(f"run.plugins: {file}{message}")
    assert main(["--dry-run", f"run.plugins=[{file}]"]) == 2
    assert "Traceback" not in capsys.readouterr().err


# ---- python:FILE:NAME ---------------------------------------------------------------------------------

NAMED = '''
import math
from functools import partial

import torch
from beside import TITLE
from hpt_ray.algorithms import Algorithm, Gate, Part, Recipe, Term
from hpt_ray.types import Decision

RAFT = Algorithm(
    name="raft",
    title=TITLE,
    formula="−(1/Nn) Σ_i R_i (1/L_i) Σ_t log π_θ(τ_it)",
    source="arXiv 2304.06767",
    gate="rollouts",
    default=Recipe((Term("rollouts", "correct", "current", loss_aggregation="seq-mean-token-mean"),)),
)


def make_raft():
    return RAFT


def fails():
    raise LookupError("why")


def my_mask(log_ratio, advantage, settings):
    """m = 0 where the ratio is above 2"""
    return torch.zeros_like(log_ratio).masked_fill(log_ratio > math.log(2), -math.inf)


MASK = Part(my_mask, "m = 0 above 2", frozenset({"ratio"}))
BARE = partial(my_mask)


def lucky(group, gamma, history):
    """rollouts of prompts with a right one"""
    solved, total = group.num_correct, len(group.rollouts)
    return Decision(1.0 if solved else 0.0, 0.0, solved, total, "lucky" if solved else "unlucky")


LUCKY = Gate(function=lucky, data="rollouts, with luck", demonstrations="ignored")


def doubled(view):
    """Â = 2R"""
    return 2 * view.rewards


def by_prompts(view, members):
    """Z = N"""
    return 1 / (0 * view.lengths + view.batch.num_prompts)


def unchanged(log_weight, view):
    """weight as it is"""
    return log_weight


NUMBER = 3
'''

WRONG = """
from hpt_ray.types import Decision


def numbers(group, gamma, history):
    return 3


def demos(group, gamma, history):
    return Decision(0.0, 1.0, 0, 2, "always")


def truths(log_ratio, advantage, settings):
    return log_ratio < 1


def one(log_ratio, advantage, settings):
    return 1.0


def nans(log_ratio, advantage, settings):
    return log_ratio * float("nan")


def fails(view):
    raise ValueError("not me")
"""


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory with my.py and a module beside it."""
    (tmp_path / "my.py").write_text(NAMED, encoding="utf-8")
    (tmp_path / "beside.py").write_text('TITLE = "reward-ranked fine-tuning"\n')
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["algorithm.name=python:my.py:RAFT"], ["raft: reward-ranked fine-tuning", "exactly 0: rollout 2, rollout 3"]),
        (["algorithm.name=python:my.py:make_raft"], ["raft: reward-ranked fine-tuning"]),
        (["selection.gate=python:my.py:LUCKY"], ["python:my.py:LUCKY: rollouts, with luck", "α = 0, β = 0 (unlucky)"]),
        (["selection.gate=python:my.py:lucky"], ["rollouts of prompts with a right one", "α = 1, β = 0 (lucky)"]),
        (["algorithm.rollout_clip=python:my.py:MASK"], ["clip python:my.py:MASK           m = 0 above 2"]),
        (["algorithm.rollout_clip=python:my.py:BARE"], ["clip python:my.py:BARE"]),
        (
            ["algorithm.rollout_clip=python:my.py:my_mask", "algorithm.rollout_advantage=python:my.py:doubled",
             "algorithm.rollout_loss_aggregation=python:my.py:by_prompts",
             "algorithm.correction=python:my.py:unchanged"],
            ["m = 0 where the ratio is above 2", "Â = 2R", "Z = N\n", "weight as it is"],
        ),
        (
            [
                "run.steps=2",
                "phases=[{steps: 1, algorithm: {name: sft}}, {steps: 1, algorithm: {name: 'python:my.py:RAFT'}}]",
            ],
            ["Phase 2, steps 2 to 2\n\nraft: reward-ranked fine-tuning"],
        ),
    ],
)  # fmt: skip
def test_a_name_may_stand_in_a_file(
    named: Path, words: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain.main(words) == 0
    text = capsys.readouterr().out
    for line in lines:
        assert line in text
    assert main(["--dry-run", *words]) == 0
    assert explain.main(["--all"]) == 0
    assert "python:my.py" not in capsys.readouterr().out.split("reward function")[0]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algorithm.name=python:none.py:RAFT", "none.py is not there. A relative path is relative to"),
        ("algorithm.name=python:my.py:RAF", "no RAF. Did you mean RAFT? It has: RAFT, make_raft"),
        ("algorithm.name=python:my.py:NUMBER", "this is an int, but must be an Algorithm of hpt_ray.algorithms"),
        ("algorithm.name=python:my.py:LUCKY", "this is a Gate, but must be an Algorithm"),
        ("algorithm.name=python:my.py:fails", "my.py:25: LookupError: why"),
        ("algorithm.name=python:RAFT", "write it as python:FILE:NAME, such as python:my.py:RAFT"),
        ("algorithm.name=python:my.txt:RAFT", "my.txt is no Python file"),
        ("algorithm.name=python:broken.py:RAFT", "broken.py:2 cannot be imported: ZeroDivisionError"),
        ("selection.gate=python:my.py:doubled", "takes (view), but must be a Gate"),
        ("selection.gate=python:my.py:my_mask", "my.py:30: TypeError: zeros_like()"),
        ("selection.gate=python:wrong.py:numbers", "it returns 3; return a Decision of hpt_ray.types"),
        ("selection.gate=python:wrong.py:demos", "asks for the demonstration of a prompt that has none"),
        ("algorithm.rollout_clip=python:wrong.py:truths", "it returns truth values, but a mask is in logs"),
        ("algorithm.rollout_clip=python:wrong.py:one", "it returns shape () for 14 response tokens"),
        ("algorithm.rollout_clip=python:wrong.py:nans", "return a number for each response token"),
        ("algorithm.rollout_advantage=python:wrong.py:fails", "wrong.py:26: ValueError: not me"),
        ("selection.gate=python:my.py:RAFT", "this is an Algorithm, but must be a Gate"),
        ("algorithm.rollout_clip=python:my.py:doubled", "the function itself, of (log_ratio, advantage, settings)"),
        ("algorithm.rollout_denominator=python:my.py:NUMBER", "must be a Part of hpt_ray.algorithms"),
    ],
)  # fmt: skip
def test_a_wrong_name_in_a_file_is_the_users_to_fix(
    named: Path, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (named / "my.txt").write_text("x")
    (named / "broken.py").write_text("x = 1\nx / 0\n")
    (named / "wrong.py").write_text(WRONG)
    for command in (explain.main, lambda words: main(["--dry-run", *words])):
        assert command([word]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert word.rpartition(":")[2] in error  # its file has become absolute in a run
        assert message in error
        assert "Traceback" not in error


def test_a_run_keeps_where_the_file_is(named: Path) -> None:
    words = [
        "run.steps=1",
        "phases=[{steps: 1, algorithm: {name: 'python:my.py:RAFT'}}]",
        "selection.gate=python:my.py:LUCKY",
    ]
    config = configured(Namespace(config=None, overrides=words))
    assert config.selection.gate == f"python:{named}/my.py:LUCKY"
    assert config.phases == [{"steps": 1, "algorithm": {"name": f"python:{named}/my.py:RAFT"}}]


def test_processes_of_the_run_look_up_the_same_names(named: Path) -> None:
    """A learner rank is given the estimator, whose terms are names, and the environment of the driver."""
    estimator = make_estimator("grpo", rollout_clip=f"python:{named}/my.py:my_mask")
    (named / "estimator.pickle").write_bytes(pickle.dumps(estimator))
    assert plugins.environment() == {plugins.VARIABLE: f"{named}/my.py"}
    code = (
        "import pickle, sys; from hpt_ray.utils.plugins import load_inherited; load_inherited(); "
        "from hpt_ray.algorithms.estimator import parts_of; "
        "print(parts_of(pickle.load(open(sys.argv[1], 'rb')).terms[0])['clip'].formula)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, named / "estimator.pickle"],
        env={**os.environ, **plugins.environment()},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert child.stdout == "m = 0 where the ratio is above 2\n"
