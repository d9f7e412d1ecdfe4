"""pass@k is compared between methods only where both were asked the same prompts."""

from pathlib import Path

import numpy as np
import pytest

from hpt_ray.errors import UserError
from hpt_ray.evaluation.mixed import estimate
from hpt_ray.evaluation.results import PromptResult, write_results
from hpt_ray.tools.suite.passes import BASE, PASS, Evaluation, Solved, read_passes

BENCHMARK = "chain"


def solved(asked: str, chances: list[float]) -> Solved:
    return Solved((1,), {("t", 1): [np.array([chances])]}, {BENCHMARK: tuple(asked)})


def evaluated(folder: Path, method: str, seed: int, correct: dict[str, int]) -> Evaluation:
    """A finished evaluation with two samples of each prompt; a prompt's hash is its id."""
    evaluation = Evaluation(PASS, "t", method, seed, folder / f"{method}-{seed}")
    evaluation.out.mkdir()
    none = dict.fromkeys(("no_answer", "unparsable", "timeout", "error", "truncated"), 0)
    rows = [
        PromptResult(BENCHMARK, q, "s", None, q, n=2, correct=c, wrong=2 - c, mean_tokens=1.0, **none)
        for q, c in correct.items()
    ]
    write_results(evaluation.out, rows)
    (evaluation.out / "results.json").write_text("{}", encoding="utf-8")
    return evaluation


def test_others_prompts_are_not_compared_though_they_are_as_many() -> None:
    ours = solved("abc", [1.0, 0.5, 0.0])
    same = ours.minus(solved("abc", [0.0, 0.5, 0.0]), 1)
    assert same is not None
    assert same.mean == pytest.approx(1 / 3)
    assert ours.minus(solved("abd", [0.0, 0.5, 0.0]), 1) is None
    assert ours.minus(solved("ab", [0.0, 0.5]), 1) is None


def test_the_prompts_are_those_of_the_result_files(tmp_path: Path) -> None:
    passes = read_passes(
        [
            evaluated(tmp_path, "hpt", 1, {"a": 2, "b": 0}),
            evaluated(tmp_path, "hpt", 2, {"b": 2, "a": 2}),  # the order of results is no matter
            evaluated(tmp_path, "grpo", 1, {"a": 0, "b": 0}),
            evaluated(tmp_path, "sft", 1, {"a": 0, "c": 0}),
        ]
    )
    hpt = passes["t", "hpt"]
    assert hpt.asked == {BENCHMARK: ("a", "b")}
    assert [run[0].tolist() for run in hpt.runs.values()] == [
        [[1.0, 0.0], [1.0, 0.0]],
        [[1.0, 1.0], [1.0, 1.0]],
    ]
    assert hpt.minus(passes["t", "grpo"], 1) is not None
    assert hpt.minus(passes["t", "sft"], 1) is None


def test_seeds_that_were_asked_different_prompts_are_refused(tmp_path: Path) -> None:
    first, second = (evaluated(tmp_path, "hpt", s, {"a": 2, q: 0}) for s, q in ((1, "b"), (2, "c")))
    with pytest.raises(UserError, match=f"{second.out}: the prompts of chain are not those"):
        read_passes([first, second])


def test_seeds_and_prompts_are_paired(tmp_path: Path) -> None:
    correct = {1: {"a": 2, "b": 0, "c": 1}, 2: {"a": 2, "b": 2, "c": 2}, 3: {"a": 1, "b": 0, "c": 2}}
    ours = [evaluated(tmp_path, "hpt", seed, of_seed) for seed, of_seed in correct.items()]
    base = evaluated(tmp_path, BASE, 0, {"a": 0, "b": 2, "c": 0})
    passes = read_passes([*ours, base, evaluated(tmp_path, "grpo", 2, {"a": 0, "b": 0, "c": 2})])
    table = np.array([[1, 0, 0.5], [1, 1, 1], [0.5, 0, 1]]) - [0, 1, 0]
    expected = estimate({("t", seed): [row] for seed, row in enumerate(table, 1)})
    assert passes["t", "hpt"].minus(passes["t", BASE], 1) == expected
    one = passes["t", "hpt"].minus(passes["t", "grpo"], 1)  # of the seed that both have
    assert one is not None
    assert (one.n, one.mean, one.ci95) == (1, pytest.approx(2 / 3), None)
