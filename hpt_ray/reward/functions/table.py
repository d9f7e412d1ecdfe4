"""The table of reward functions: names in configurations → how to make the reward function and check its ground truths.

A reward function is named `NAME` or `NAME:ARGUMENT`, e.g. `math`, `math:lenient`, `regex:Answer: (.*)`,
`python:grading.py:grade`, `http:http://host:8000/grade`. To add one: a file in this folder and a row here.
`check_reward_function` refuses mistakes before a run starts, `build` makes the function inside a grading process.
Reading this table imports no reward function's library: sympy is imported where `math` is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpt_ray.errors import UserError
from hpt_ray.reward.functions import boxed, choice, custom, exact, gsm8k, math, regex, remote
from hpt_ray.types import RewardResult

Grade = Callable[[str, Any], RewardResult]


@dataclass(frozen=True, slots=True)
class RewardFunctionKind:
    """`make(argument)` gives the reward function. `check_argument` raises ValueError with what is wrong.
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
    """The user's reward function decides what a ground truth is."""


REWARD_FUNCTIONS: dict[str, RewardFunctionKind] = {
    "boxed": RewardFunctionKind(lambda _: boxed.grade, boxed.references, _no_argument, "boxed"),
    "math": RewardFunctionKind(math.make, math.references, math.check_argument, "math or math:lenient"),
    "gsm8k": RewardFunctionKind(lambda _: gsm8k.grade, gsm8k.references, _no_argument, "gsm8k"),
    "choice": RewardFunctionKind(lambda _: choice.grade, choice.references, _no_argument, "choice"),
    "exact": RewardFunctionKind(lambda _: exact.grade, exact.references, _no_argument, "exact"),
    "regex": RewardFunctionKind(regex.make, exact.references, regex.check_argument, "regex:PATTERN"),
    "python": RewardFunctionKind(custom.make, _anything, custom.check_argument, "python:FILE:FUNCTION"),
    "http": RewardFunctionKind(remote.make, _anything, remote.check_argument, "http:URL"),
}


def check_reward_function(spec: str) -> None:
    """Raise UserError unless `spec` names a reward function that can be built."""
    name, _, argument = spec.partition(":")
    if name not in REWARD_FUNCTIONS:
        near = difflib.get_close_matches(name, REWARD_FUNCTIONS, n=1, cutoff=0.3)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise UserError(f"Unknown reward function `{spec}`.{hint} There are: {', '.join(REWARD_FUNCTIONS)}.")
    row = REWARD_FUNCTIONS[name]
    try:
        row.check_argument(argument)
    except ValueError as error:
        raise UserError(f"Reward function `{spec}`: {error}. Write it as `{row.usage}`.") from error


def check_ground_truth(ground_truth: Any, reward_function: str) -> str | None:
    """Why `reward_function` cannot use this ground truth, or None if it can. Reads only its form."""
    check_reward_function(reward_function)
    try:
        REWARD_FUNCTIONS[reward_function.partition(":")[0]].check_truth(ground_truth)
    except ValueError as error:
        return str(error)
    return None


def build(spec: str) -> Grade:
    """The grading function that `spec` names. Called inside the grading process."""
    check_reward_function(spec)
    name, _, argument = spec.partition(":")
    return REWARD_FUNCTIONS[name].make(argument)
