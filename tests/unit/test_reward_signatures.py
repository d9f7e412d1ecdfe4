"""Reward functions of users as they bring them: ours, verl's and TRL's signatures, and all that they may return."""

import json
from pathlib import Path

import pytest

from hpt_ray.errors import UserError
from hpt_ray.reward import Row, check_reward_function
from hpt_ray.reward.functions.table import build
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.types import Outcome

TEXT = Row("set/a", "What is 2 + 5?", {"answer": "seven", "difficulty": 3, "completion": "a demonstration"})
MESSAGES = Row("set/a", [{"role": "user", "content": "What is 2 + 5?"}], {"answer": "seven"})
VALUES = {
    "response": "so 7",
    "ground_truth": "7",
    "prompt": TEXT.prompt,
    "data_source": "set/a",
    "extra_info": dict(TEXT.extra),
}


@pytest.fixture
def grade(tmp_path):
    """`grade(source, row)`: the result of what `source` defines as `f`, for the response "so 7" and the truth "7"."""

    def run(source: str, row: Row = TEXT):
        file = tmp_path / "mine.py"
        file.write_text(source)
        check_reward_function(f"python:{file}:f")
        return build(f"python:{file}:f")("so 7", "7", row)

    return run


# Each returns what it was given, as the text `extracted`.
SEEN = "import json\ndef seen(*values): return {'score': 1, 'extracted': json.dumps(values)}\n"


@pytest.mark.parametrize(
    ("signature", "names", "expected"),
    [
        ("response, ground_truth", "response, ground_truth", ["so 7", "7"]),
        ("ground_truth, response", "response, ground_truth", ["so 7", "7"]),
        ("text, truth", "text, truth", ["so 7", "7"]),
        ("completion, answer", "completion, answer", ["so 7", "seven"]),  # a response is never a column
        ("answer, completion", "answer, completion", ["seven", "so 7"]),
        ("target, output", "target, output", ["7", "so 7"]),
        ("gt, text", "gt, text", ["7", "so 7"]),
        ("difficulty, text, truth", "difficulty, text, truth", [3, "so 7", "7"]),
        ("question, solution, answer", "question, solution, answer", [TEXT.prompt, "so 7", "seven"]),
        ("solution, ground_truth", "solution, ground_truth", ["so 7", "7"]),
        ("response", "response", ["so 7"]),
        ("response, weight=2", "response, weight", ["so 7", 2]),
        ("response, difficulty=1", "response, difficulty", ["so 7", 3]),
        ("response, truth, /, *, difficulty", "response, truth, difficulty", ["so 7", "7", 3]),
        ("prompt, text, ground_truth", "prompt, text, ground_truth", [TEXT.prompt, "so 7", "7"]),
        ("response, data_source, extra_info", "data_source, extra_info", ["set/a", dict(TEXT.extra)]),
        ("response, **rest", "response, rest", ["so 7", dict(TEXT.extra) | VALUES]),
        ("**rest", "rest['response'], rest['answer']", ["so 7", "seven"]),
        (
            "data_source, solution_str, ground_truth, extra_info=None",
            "data_source, solution_str, ground_truth, extra_info",
            ["set/a", "so 7", "7", dict(TEXT.extra)],
        ),
        ("solution_str, ground_truth, difficulty=1", "solution_str, difficulty", ["so 7", 1]),
        ("solution_str, difficulty", "solution_str, difficulty", ["so 7", 3]),
        (
            "solution_str, **rest",
            "solution_str, rest",
            ["so 7", {n: VALUES[n] for n in ("data_source", "ground_truth", "extra_info")}],
        ),
        ("completions, answer, **rest", "completions, answer", [["so 7"], ["seven"]]),
        ("prompts, completions, ground_truth", "prompts, completions", [[TEXT.prompt], ["so 7"]]),
        ("completions, **rest", "rest['prompts'], rest['difficulty']", [[TEXT.prompt], [3]]),
        ("completions, solution, answer", "solution, answer", [["7"], ["seven"]]),
        ("completions, trainer_state=None", "completions, trainer_state", [["so 7"], None]),
        (
            "data_sources, solution_strs, ground_truths, extra_infos=None",
            "data_sources, solution_strs, ground_truths, extra_infos",
            [["set/a"], ["so 7"], ["7"], [dict(TEXT.extra)]],
        ),
        ("queries, prompts", "queries, prompts", [[TEXT.prompt + "so 7"], [TEXT.prompt]]),
        (
            "queries, prompts, labels, **kwargs",
            "queries, labels, kwargs",
            [[TEXT.prompt + "so 7"], ["7"], {}],
        ),
        ("queries, difficulty", "difficulty", [[3]]),
    ],
)
def test_signatures(grade, signature, names, expected):
    def without(value):  # of `**rest`, what stands in a parameter of its own
        return {k: v for k, v in value.items() if k != "response"} if isinstance(value, dict) else value

    result = grade(f"{SEEN}def f({signature}): return seen({names})\n")
    assert json.loads(result.extracted) == [without(value) for value in expected]
    assert result.correct


def test_trl_gets_messages_where_the_data_has_messages(grade):
    result = grade(f"{SEEN}def f(prompts, completions): return seen(prompts, completions)\n", MESSAGES)
    prompts, completions = json.loads(result.extracted)
    assert prompts == [MESSAGES.prompt]
    assert completions == [[{"role": "assistant", "content": "so 7"}]]


@pytest.mark.parametrize(
    "source",
    [
        "async def f(response, truth): return truth in response",
        "f = lambda response, truth: truth in response",
        "import functools\ndef g(weight, response, ground_truth): return weight\nf = functools.partial(g, weight=1)",
        "import functools\ndef g(weight, text, truth): return weight\nf = functools.partial(g, 1)",
        "class Judge:\n    def __call__(self, response, truth): return truth in response\nf = Judge()",
        "class Judge:\n    async def __call__(self, response, truth): return truth in response\nf = Judge()",
        "class Judge:\n    def judge(self, response, truth): return truth in response\nf = Judge().judge",
        "def plain(g):\n    def inner(*a, **k): return g(*a, **k)\n    return inner\n"
        "@plain\ndef f(response, truth): return truth in response",
        "if True:\n    def f(response, truth): return 1",
        "from neighbouring import f",
        "from neighbouring import *",
    ],
)
def test_whatever_can_be_called(grade, tmp_path, source):
    (tmp_path / "neighbouring.py").write_text("def f(response, truth): return truth in response\n")
    assert grade(source).correct


def test_async_functions_share_one_event_loop(grade):
    source = (
        "import asyncio\nloops = set()\n"
        "async def f(response, truth):\n    loops.add(asyncio.get_running_loop())\n    return len(loops)\n"
    )
    assert [grade(source).score, grade(source).score] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        ("True", 1.0),
        ("2", 2.0),
        ("{'rewards': numpy.array([1.0]), 'scores': numpy.array([1.0]), 'extra_logs': {}}", 1.0),
        ("numpy.float32(0.5)", 0.5),
        ("numpy.bool_(True)", 1.0),
        ("numpy.array(0.25)", 0.25),
        ("numpy.array([0.25])", 0.25),
        ("[0.5]", 0.5),
        ("(1,)", 1.0),
        ("{'score': numpy.float64(0.5)}", 0.5),
        ("[{'score': 0.5}]", 0.5),
        ("RewardResult(0.5, Outcome.WRONG)", 0.5),
    ],
)
def test_returned_values(grade, returned, score):
    result = grade(f"import numpy\nfrom hpt_ray.types import *\ndef f(response, truth): return {returned}\n")
    assert result.score == score
    assert result.correct == (score >= 1)


def test_returned_tensors(grade):
    for returned in ("torch.tensor(0.5)", "torch.tensor([0.5])", "torch.tensor([0.5], requires_grad=True)"):
        assert grade(f"import torch\ndef f(response, truth): return {returned}\n").score == 0.5


@pytest.mark.parametrize(
    ("returned", "outcome"),
    [
        ("{'score': 0.5, 'acc': True}", "correct"),
        ("{'score': 2, 'acc': 0}", "wrong"),
        ("{'score': 2, 'acc': 0, 'outcome': 'no_answer'}", "no_answer"),
        ("{'score': 2, 'acc': 0.5}", "correct"),
    ],
)
def test_acc_says_whether_it_is_correct(grade, returned, outcome):
    assert grade(f"def f(response, truth): return {returned}\n").outcome.value == outcome


def test_further_entries_of_a_dict_are_metrics(grade):
    result = grade(
        "def f(response, truth): return {'score': 1, 'acc': True, 'a/b': 0.5, 'pred': 7, 'note': 'x', "
        "'nan': float('nan'), 'detail': 'why'}\n"
    )
    assert (result.score, result.extracted, result.detail) == (1.0, "7", "why")
    assert result.metrics == {"acc": 1.0, "a_b": 0.5}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", r"returned None \(is a `return` missing\?\)"),
        ("'correct'", "returned 'correct', a str"),
        ("float('nan')", "score is nan"),
        ("[1.0, 0.0]", "2 values for one response"),
        ("[]", "0 values"),
        ("[None]", "returned None"),
        ("{'reward': 1}", "a dict without `score`; it has reward"),
        ("{'score': None}", "returned None"),
        ("1j", "a complex"),
        ("RewardResult(float('inf'), Outcome.WRONG)", "score is inf"),
    ],
)
def test_values_that_are_no_reward(grade, returned, message):
    with pytest.raises((TypeError, ValueError), match=message):
        grade(f"from hpt_ray.types import *\ndef f(response, truth): return {returned}\n")


def test_a_parameter_that_nothing_fills_is_named_with_what_there_is(grade):
    source = "def f(response, ground_truth, rubric): return 1\n"
    with pytest.raises(LookupError, match=r"`rubric`.*there are answer, completion, data_source, difficulty"):
        grade(source)
    assert grade(source, Row(extra={"rubric": "be kind"})).correct
    with pytest.raises(LookupError, match="completion_ids"):
        grade("def f(completions, completion_ids): return [1]\n")
    with pytest.raises(LookupError, match="no parameter for the response"):
        grade("def f(prompt, ground_truth): return 1\n")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "class f:\n    def __call__(self, response, truth): return 1\n",
            "f is a class: say `grade = f\\(\\)`",
        ),
        ("f = 3\n", "f is a int, which cannot be called"),
        ("import no_such_module\ndef f(response, truth): return 1\n", "no_such_module"),
    ],
)
def test_what_cannot_be_called_says_so(grade, source, message):
    with pytest.raises((TypeError, ImportError), match=message):
        grade(source)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("", "no parameter for the response: call one `response`"),
        ("question, answer", "no parameter for the response: call one `response`"),
        ("question, ground_truth", "no parameter for the response"),
        ("predictions, labels", "`predictions` seems to be a list"),
        ("parser, prediction, answer", "nothing fills its parameter `parser`"),
        ("response, answer, info", "nothing fills its parameter `info`"),
    ],
)
def test_a_signature_that_could_be_misread_is_an_error(grade, signature, message):
    with pytest.raises(LookupError, match=message):
        grade(f"def f({signature}): return 1\n")


def test_what_is_wrong_with_the_name_is_said_with_the_line_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("x = 1\ndef grade(response, ground_truth)\n    return 1\n")
    with pytest.raises(UserError, match=r"broken.py:2 cannot be read as Python"):
        check_reward_function("python:broken.py:grade")
    with pytest.raises(UserError, match=r"Did you mean `python:mine\.py:grade`"):
        check_reward_function("mine.py:grade")
    with pytest.raises(UserError, match=r"Did you mean `python:mine\.py:FUNCTION`"):
        check_reward_function("mine.py")
    with pytest.raises(UserError, match=r"No module named 'my_pkg'"):
        check_reward_function("python:my_pkg.rewards:grade")
    check_reward_function("http://localhost:8000/grade")


def test_a_module_of_the_working_directory(tmp_path, monkeypatch):
    package = tmp_path / "pkg_of_rewards"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "scores.py").write_text("def grade(response, truth): return truth in response\n")
    monkeypatch.chdir(tmp_path)
    name = "python:pkg_of_rewards.scores:grade"
    check_reward_function(name)
    with pytest.raises(UserError, match="no function other"):
        check_reward_function("python:pkg_of_rewards.scores:other")
    with Pool() as pool:
        assert pool.grade([Task(name, "so 7", "7")])[0].correct


def test_a_file_may_begin_with_a_byte_order_mark(grade):
    assert grade("\ufeffdef f(response, truth): return 1\n").correct


def test_a_failure_says_where_and_with_which_arguments(tmp_path):
    file = tmp_path / "math.py"  # the name of a module that Python has too
    file.write_text("import math\ndef grade(response, ground_truth):\n    return {}['missing']\n")
    with Pool() as pool:
        [result] = pool.grade([Task(f"python:{file}:grade", "so 7" * 100, "7")])
    assert result.outcome is Outcome.ERROR
    assert "KeyError: 'missing'; math.py:3; in grade(response='so 7" in result.detail
    assert "ground_truth='7')" in result.detail
    assert len(result.detail) < 400


def test_what_a_reward_function_prints_is_kept_and_disturbs_nothing(tmp_path):
    file, log = tmp_path / "loud.py", tmp_path / "verifier-0.log"
    file.write_text(
        "import os, sys\nprint('loading')\n"
        "def grade(response, ground_truth):\n"
        "    print('graded', response)\n"
        "    os.write(1, b'raw\\n')\n"
        "    print('careful', file=sys.stderr)\n"
        "    if response == 'exit': sys.exit(0)\n"
        "    if response == 'read': input()\n"
        "    if response == 'end': os._exit(0)\n"
        "    return 1\n"
    )
    with Pool(output=str(log)) as pool:
        results = pool.grade(
            [Task(f"python:{file}:grade", text, "") for text in ("a", "exit", "read", "end")]
        )
    assert [result.outcome for result in results] == [Outcome.CORRECT] + [Outcome.ERROR] * 3
    for words in ("loading", "graded a", "raw", "careful", "graded end"):
        assert words in log.read_text()
