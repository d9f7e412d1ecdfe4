"""RewardFunctions against published data: GSM8K solutions, and the reference answers of five mathematics benchmarks.

Reads `shared/data` beside the repository and is skipped where that is absent.
"""

import json
import re
from pathlib import Path

import pytest

from hpt_ray.reward.functions.extract import last_boxed
from hpt_ray.reward.functions.math import normalise
from hpt_ray.reward.functions.table import check_ground_truth
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.types import Outcome

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
BENCHMARKS = {"AIME24": 30, "AIME25": 30, "AMC23": 40, "MATH-500": 500, "Olympiad-Bench": 674}
# Pairs of references with one value in two spellings, as the cross-pairing below meets them.
EQUAL_VALUES = {("5", "x=5"), ("k=3", "3")}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data beside the repository")


@pytest.fixture(scope="module")
def pool():
    with Pool(2, preload=["math", "gsm8k"]) as pool:
        yield pool


def references(benchmark: str) -> list[str]:
    rows = json.loads((DATA / "eval" / f"{benchmark}.json").read_text())
    assert len(rows) == BENCHMARKS[benchmark]
    return [row["answer"] for row in rows]


def worked(answer: str) -> str:
    r"""A response as a model writes it: attempts, another box, display mathematics, the answer in a box."""
    return (
        "Let $x$ be the number we look for. A first guess is \\boxed{-1}, but $(-1)^{2} + 1 \\ne 0$.\n"
        "Step by step, with \\{a, b\\} the set of roots:\n\\[\n\\frac{a+b}{2} = 3 \\cdot 10^{2}\n\\]\n"
        f"Therefore, the final answer is\n\\[\n\\boxed{{{answer}}}.\n\\]\n"
    )


def bare(reference: str) -> str:
    """The answer as it would stand in a box: without the reference's own box and dollar signs."""
    boxed = last_boxed(reference)
    return re.sub(r"(?<!\\)\$", "", reference if boxed is None else boxed)


def respelled(reference: str) -> str:
    """The same answer in another hand: other fractions, brackets, degrees and blanks."""
    answer = re.sub(r"\\[dt]?frac(?![a-z])", r"\\dfrac", bare(reference))
    answer = answer.replace("^\\circ", "^{\\circ}").replace("\\left", "").replace("\\right", "")
    answer = re.sub(r"([-+=])", r" \1 ", answer)
    return answer.replace("(", "\\left(").replace(")", "\\right)")


def named(reference: str) -> str:
    """With a name for the value, `x = 3`, where it has none."""
    answer = bare(reference)
    return answer if "=" in answer or "\\in" in answer else f"x = {answer}"


@pytest.mark.parametrize("spelling", [bare, respelled, named])
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_reference_answers_are_correct(pool, benchmark, spelling):
    answers = references(benchmark)
    assert [check_ground_truth(answer, "math") for answer in answers] == [None] * len(answers)
    results = pool.grade([Task("math", worked(spelling(answer)), answer) for answer in answers])
    missed = [(a, v.outcome.value, v.detail) for a, v in zip(answers, results, strict=True) if not v.correct]
    assert len(missed) <= 0.01 * len(answers), missed


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_answers_of_other_prompts_are_wrong(pool, benchmark):
    answers = references(benchmark)
    others = answers[1:] + answers[:1]
    results = pool.grade([Task("math", worked(bare(a)), b) for a, b in zip(answers, others, strict=True)])
    for answer, other, result in zip(answers, others, results, strict=True):
        pair = bare(answer), bare(other)
        equal = normalise(pair[0]) == normalise(pair[1]) or pair in EQUAL_VALUES
        assert result.correct == equal, (pair, result)
        if not equal:
            assert result.outcome in (Outcome.WRONG, Outcome.UNPARSABLE), (pair, result)


def gsm8k() -> list[str]:
    rows = (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()
    assert len(rows) == 1319
    return [json.loads(row)["answer"] for row in rows]


@pytest.mark.parametrize("reward_function", ["gsm8k", "math"])
def test_all_gsm8k_solutions_are_correct(pool, reward_function):
    solutions = gsm8k()
    numbers = [solution.rpartition("#### ")[2] for solution in solutions]
    responses = {"gsm8k": solutions, "math": [worked(number) for number in numbers]}[reward_function]
    tasks = [
        Task(reward_function, response, number) for response, number in zip(responses, numbers, strict=True)
    ]
    assert [result.outcome for result in pool.grade(tasks)] == [Outcome.CORRECT] * 1319


def test_a_whole_gsm8k_solution_is_a_ground_truth(pool):
    tasks = [Task("gsm8k", worked(solution.rpartition("#### ")[2]), solution) for solution in gsm8k()]
    assert [result.outcome for result in pool.grade(tasks)] == [Outcome.CORRECT] * 1319


def test_perturbed_gsm8k_numbers_are_wrong(pool):
    tasks = []
    for solution in gsm8k():
        work, _, number = solution.rpartition("#### ")
        value = int(number.replace(",", ""))
        others = {value + 1, value - 1, value * 10, -value, value + 0.5} - {value}
        tasks += [Task("gsm8k", f"{work}#### {other}", number) for other in others]
        tasks += [Task("math", worked(str(other)), number) for other in others]
    assert {result.outcome for result in pool.grade(tasks)} == {Outcome.WRONG}
