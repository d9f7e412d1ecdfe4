"""The verifier service without Ray: choice of reward function, truncation, extra terms, counts, many callers."""

import asyncio
import pickle
import subprocess
import sys

import pytest

from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward import GradeItem, Row, VerifierService, grade
from hpt_ray.reward.service import format_reward, overlong_penalty
from hpt_ray.types import Outcome


def run_service(config, items, **arguments):
    service = VerifierService(config, **arguments)
    try:
        return asyncio.run(service.grade(items)), service.counts()
    finally:
        service.close()


def test_reward_function_by_data_source_and_counts():
    config = RewardConfig(function="boxed", functions={"openai/gsm8k": "gsm8k"})
    items = [
        GradeItem(r"\boxed{1/2}", "0.5", Row("mini"), True),
        GradeItem(r"\boxed{7}", "7", Row("mini"), True),
        GradeItem("#### 7.0", "7", Row("openai/gsm8k"), True),
        GradeItem("no", "7", Row("openai/gsm8k"), True),
        GradeItem(r"\boxed{7}", None, Row("mini"), True),
    ]
    results, counts = run_service(config, items)
    assert [v.outcome.value for v in results] == ["wrong", "correct", "correct", "no_answer", "error"]
    assert counts == {
        "correct": 2,
        "wrong": 1,
        "no_answer": 1,
        "unparsable": 0,
        "timeout": 0,
        "error": 1,
        "processes_replaced": 0,
    }


def test_the_row_of_a_prompt_is_sent_once_a_batch():
    row = Row("set", "What?", {"text": "x" * 100_000})
    assert len(pickle.dumps([GradeItem("7", "7", row, True) for _ in range(8)])) < 110_000


def test_a_cut_response_is_no_answer_unless_configured():
    items = [GradeItem(r"\boxed{7}", "7", Row(), finished) for finished in (False, True)]
    strict, counts = run_service(RewardConfig(), items)
    assert [v.outcome for v in strict] == [Outcome.NO_ANSWER, Outcome.CORRECT]
    assert "require_finished" in strict[0].detail
    assert counts["no_answer"] == 1
    as_official, _ = run_service(RewardConfig(require_finished=False), items)
    assert [v.score for v in as_official] == [1.0, 1.0]


def test_many_small_batches_share_the_pool():
    async def grade_all(service):
        batches = [
            service.grade([GradeItem(rf"\boxed{{{i}}}", str(i + j % 2), Row(), True) for j in range(8)])
            for i in range(100)
        ]
        return await asyncio.gather(*batches)

    service = VerifierService(RewardConfig(num_processes=2))
    try:
        for results in asyncio.run(grade_all(service)):
            assert [v.correct for v in results] == [True, False] * 4
        assert service.counts()["correct"] == 400
    finally:
        service.close()


def test_terms_add_to_the_score_and_not_to_the_outcome():
    config = RewardConfig(terms={"overlong": 1.0, "format": 0.25}, overlong_buffer=20)
    items = [
        GradeItem(r"\boxed{7}", "7", Row(), True, num_tokens=80),
        GradeItem(r"\boxed{7}", "7", Row(), True, num_tokens=90),
        GradeItem("so 7", "7", Row(), False, num_tokens=100),
    ]
    results, _ = run_service(config, items, max_response_tokens=100)
    assert [v.score for v in results] == [1.25, 0.75, -1.0]
    assert [v.correct for v in results] == [True, True, False]


def test_thinking_that_the_prompt_opened_is_the_responses_own():
    items = [
        GradeItem(response, "7", Row(opening=opening), True)
        for response in (r"So \boxed{7}.", r"Hm.</think> \boxed{7}")
        for opening in ("", "<think>\n")
    ]
    results, _ = run_service(RewardConfig(function="math", terms={"format": 0.25}), items)
    assert [v.score for v in results] == [1.25, 0.0, 1.25, 1.25]
    assert results[1].detail == "a box only in the thinking"


def test_overlong_penalty_is_dapo_equation_13():
    values = [overlong_penalty(n, limit=100, buffer=20) for n in (0, 80, 85, 90, 100, 120)]
    assert values == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_format_reward():
    assert format_reward(r"\boxed{3}") == 1.0
    assert format_reward(r"\boxed{3") == 0.0
    assert format_reward(r"<think>\boxed{3}</think> It is \boxed{4}.") == 1.0
    assert format_reward(r"<think>It must be \boxed{3}.</think> It is 3.") == 0.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RewardConfig(function="maths"), r"reward\.function: .*`maths`.*`math`"),
        (RewardConfig(functions={"a/b": "choise"}), r"reward\.functions\[a/b\]: .*`choice`"),
        (RewardConfig(terms={"fromat": 1.0}), r"reward\.terms.*`format`"),
        (RewardConfig(terms={"overlong": 1.0}, overlong_buffer=200), r"overlong_buffer \(200\)"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(config, message):
    with pytest.raises(UserError, match=message):
        VerifierService(config, max_response_tokens=100)


def test_grade_for_scripts():
    assert grade(r"so \boxed{1/2}", "0.5").correct
    assert grade("#### 8", "7", reward_function="gsm8k").outcome is Outcome.WRONG
    with pytest.raises(UserError, match="Did you mean `gsm8k`"):
        grade("8", "7", reward_function="gsm")
    with pytest.raises(UserError, match="missing"):
        grade("8", None)


def test_the_service_knows_the_reward_functions_of_a_users_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from hpt_ray.reward import REWARD_FUNCTIONS, RewardFunctionKind\n"
        "REWARD_FUNCTIONS['mine'] = RewardFunctionKind('mine', 'as text', REWARD_FUNCTIONS['exact'].make)\n"
    )
    script = (
        "import asyncio\n"
        "from hpt_ray.config.schema import RewardConfig\n"
        "from hpt_ray.reward import GradeItem, Row, VerifierService\n"
        "from hpt_ray.utils import plugins\n"
        "plugins.load(['mine.py'])\n"
        "service = VerifierService(RewardConfig(function='mine'))\n"
        "print(asyncio.run(service.grade([GradeItem('7', 7, Row(), True)]))[0].outcome.value)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True, cwd=tmp_path
    )
    assert done.stdout == "correct\n"


def test_a_script_that_grades_ends_by_itself():
    script = 'from hpt_ray.reward import grade; print(grade("\\\\boxed{7}", 7).outcome.value)'
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "correct\n"
    assert done.stderr == ""
