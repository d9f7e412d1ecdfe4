"""Reward functions tried before a run starts. `../shared/cases/first_contact/rewards` is read where it is there."""

import re
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward.trial import try_rewards
from hpt_ray.types import Demonstration, Outcome, Prompt

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases" / "first_contact" / "rewards"
NO_IDS = np.zeros(0, np.int32)


def prompts(number: int, **fields) -> list[Prompt]:
    """Sums with worked responses of different lengths, each of which ends with its right answer in a box."""

    def prompt(i: int) -> Prompt:
        text = f"What is {i} + {i}?"
        worked = Demonstration(NO_IDS, f"{'hm, ' * i}{i} + {i} = \\boxed{{{2 * i}}}" + "." * (i % 4))
        own = {"text": text, "ground_truth": str(2 * i), "data_source": "sums", "demonstration": worked}
        extra = {"answer": str(2 * i), "difficulty": i}
        return Prompt(id=f"sums/{i}", token_ids=NO_IDS, extra=extra, source=text, **own | fields)

    return [prompt(i) for i in range(number)]


def trial(function: str, number: int = 8, **settings):
    return try_rewards(RewardConfig(function=function, **settings), prompts(number), max_response_tokens=64)


def test_demonstrations_are_graded_in_order():
    graded = trial("math", 64)
    assert [prompt.id for prompt, _ in graded] == [f"sums/{i}" for i in range(64)]
    assert all(result.correct for _, result in graded)


def test_by_data_source_and_prompts_without_demonstration_are_only_tried():
    config = RewardConfig(function="boxed", functions={"other": "exact"})
    given = [*prompts(2), *prompts(2, data_source="other"), *prompts(1, demonstration=None)]
    graded = try_rewards(config, given, max_response_tokens=64)
    assert [result.outcome for _, result in graded] == [Outcome.CORRECT] * 2 + [Outcome.WRONG] * 2


def test_no_prompts_nothing_tried():
    assert try_rewards(RewardConfig(), [], max_response_tokens=64) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "return {}['missing']",
            ["KeyError: 'missing'", "mine.py:2", "grade(response='0 + 0", "ground_truth='0'"],
        ),
        ("pass", ["returned None", "return` missing?"]),
        ("return float('nan')", ["score is nan"]),
        ("return 'yes'", ["returned 'yes', a str"]),
        ("return [1, 2]", ["2 values for one response"]),
        ("import sys; sys.exit(0)", ["SystemExit: 0"]),
        ("import os; os._exit(0)", ["ended (exit code 0)"]),
        ("import no_such_module", ["ModuleNotFoundError", "no_such_module"]),
    ],
)
def test_a_function_that_always_fails_is_refused_with_the_reason(tmp_path, body, words):
    file = tmp_path / "mine.py"
    file.write_text(f"def grade(response, ground_truth):\n    {body}\n")
    with pytest.raises(UserError) as caught:
        trial(f"python:{file}:grade", 5)
    assert re.search(r"failed on each of the [2-5] rows", str(caught.value))
    for text in (f"python:{file}:grade", "sums/0", *words):
        assert text in str(caught.value)


def test_a_file_that_fails_as_it_is_loaded(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("\nimport no_such_module\ndef grade(response, ground_truth): return 1\n")
    with pytest.raises(
        UserError, match=r"could not be loaded: ModuleNotFoundError.*no_such_module.*mine.py:2"
    ):
        trial(f"python:{file}:grade")


def test_a_function_that_fails_on_some_rows_starts(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def grade(response, ground_truth, difficulty):\n    return 1 / (difficulty % 4)\n")
    graded = trial(f"python:{file}:grade")
    assert [result.outcome is Outcome.ERROR for _, result in graded] == [True, False, False, False] * 2


def test_a_parameter_that_is_no_column(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def grade(response, ground_truth, rubric):\n    return 1\n")
    with pytest.raises(UserError, match=r"`rubric`.*there are answer, data_source, difficulty, extra_info"):
        trial(f"python:{file}:grade")


def test_a_function_that_takes_too_long_names_the_key_and_costs_one_limit(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import time\ndef grade(response, ground_truth):\n    time.sleep(600)\n")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"not graded within 1 s.*raise reward\.timeout_s"):
        trial(f"python:{file}:grade", 64, timeout_s=1.0)
    assert time.monotonic() - started < 8


def test_a_function_that_needs_more_memory_names_the_key(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import torch\ndef grade(response, ground_truth):\n    return 1\n")
    with pytest.raises(UserError, match=r"raise reward\.memory_mb, which is 400"):
        trial(f"python:{file}:grade", 2, memory_mb=400)


def test_a_server_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/grade"
    with pytest.raises(UserError, match=f"{url}: no answer in 4 tries.*refused"):
        trial(url, 64)


def test_what_the_function_prints_is_not_shown(tmp_path, capfd):
    file = tmp_path / "mine.py"
    file.write_text("def grade(response, ground_truth):\n    print('right')\n    return 1\n")
    trial(f"python:{file}:grade")
    assert capfd.readouterr() == ("", "")


STARTS = (
    ["verl_style", "verl_dict", "uses_column"],
    ["trl_style", "trl_prompts"],
    ["async_style", "raises_sometimes"],
)
STOPS = {
    "raises_always": "KeyError: 'missing'",
    "returns_none": "returned None",
    "returns_nan": "nan",
    "returns_text": "returned 'correct'",
    "needs_three": "`rubric`",
    "syntax_error": "syntax_error.py:1",
    "prints_and_exits": "SystemExit: 3",
}
NAMES = dict(zip(("compute_score", "reward", "grade"), STARTS, strict=True))


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases beside the repository")
@pytest.mark.parametrize(("file", "name"), [(file, name) for name, files in NAMES.items() for file in files])
def test_what_strangers_bring_starts(file, name):
    graded = trial(f"python:{CASES / file}.py:{name}", 24)
    assert sum(result.correct for _, result in graded) >= 12


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases beside the repository")
@pytest.mark.parametrize(("file", "words"), STOPS.items())
def test_what_strangers_bring_is_refused(file, words):
    with pytest.raises(UserError, match=words):
        trial(f"python:{CASES / file}.py:grade", 24)
