"""The table of graders: names in configurations → how to make the grader and check its ground truths.

A grader is named `NAME` or `NAME:ARGUMENT`, e.g. `math`, `math:lenient`, `regex:Answer: (.*)`,
`python:grading.py:grade`, `http:http://host:8000/grade`. To add one: a file in this folder and a row here.
`check_grader` refuses mistakes before a run starts, `build` makes the function inside a grading process.
Reading this table imports no grader's library: sympy is imported where `math` is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpt_ray.errors import UserError
from hpt_ray.reward.graders import boxed, choice, custom, exact, gsm8k, math, regex, remote
from hpt_ray.types import Verdict

Grade = Callable[[str, Any], Verdict]


@dataclass(frozen=True, slots=True)
class GraderRow:
    """`make(argument)` gives the grader. `check_argument` raises ValueError with what is wrong.
    `check_truth` raises ValueError when a ground truth cannot be used.
    """

    make: Callable[[str], Grade]
    check_truth: Callable[[Any], object]
    check_argument: Callable[[str], None]
    usage: str


def _no_argument(argument: str) -> None:
    if argument:
        raise ValueError("it takes no argument")


def _anything(ground_truth: Any) -> None:
    """The user's grader decides what a ground truth is."""


GRADERS: dict[str, GraderRow] = {
    "boxed": GraderRow(lambda _: boxed.grade, boxed.references, _no_argument, "boxed"),
    "math": GraderRow(math.make, math.references, math.check_argument, "math or math:lenient"),
    "gsm8k": GraderRow(lambda _: gsm8k.grade, gsm8k.references, _no_argument, "gsm8k"),
    "choice": GraderRow(lambda _: choice.grade, choice.references, _no_argument, "choice"),
    "exact": GraderRow(lambda _: exact.grade, exact.references, _no_argument, "exact"),
    "regex": GraderRow(regex.make, exact.references, regex.check_argument, "regex:PATTERN"),
    "python": GraderRow(custom.make, _anything, custom.check_argument, "python:FILE:FUNCTION"),
    "http": GraderRow(remote.make, _anything, remote.check_argument, "http:URL"),
}


def check_grader(spec: str) -> None:
    """Raise UserError unless `spec` names a grader that can be built."""
    name, _, argument = spec.partition(":")
    if name not in GRADERS:
        near = difflib.get_close_matches(name, GRADERS, n=1, cutoff=0.3)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise UserError(f"Unknown grader `{spec}`.{hint} There are: {', '.join(GRADERS)}.")
    row = GRADERS[name]
    try:
        row.check_argument(argument)
    except ValueError as error:
        raise UserError(f"Grader `{spec}`: {error}. Write it as `{row.usage}`.") from error


def check_ground_truth(ground_truth: Any, grader: str) -> str | None:
    """Why `grader` cannot use this ground truth, or None if it can. Reads only its form."""
    check_grader(grader)
    try:
        GRADERS[grader.partition(":")[0]].check_truth(ground_truth)
    except ValueError as error:
        return str(error)
    return None


def build(spec: str) -> Grade:
    """The grading function that `spec` names. Called inside the grading process."""
    check_grader(spec)
    name, _, argument = spec.partition(":")
    return GRADERS[name].make(argument)
