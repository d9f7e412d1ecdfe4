r"""The table of reward functions: names in configurations → how to make the reward function and what it accepts.

A reward function is named `NAME` or `NAME:ARGUMENT`, e.g. `math`, `math:lenient`, `regex:Answer: (.*)`,
`python:grading.py:grade`, `http:http://host:8000/grade`. `check_reward_function` refuses mistakes before a run
starts, `build` makes the function inside a grading process. To add one: a function here and a row in the table;
or, from outside, a file named in `run.plugins` that says

    REWARD_FUNCTIONS["mine"] = RewardFunctionKind(make=lambda argument: my_function)

Reading this table imports no reward function's library: sympy is imported where `math` is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from hpt_ray.errors import UserError
from hpt_ray.reward.functions import choice, custom, gsm8k, math, remote, text
from hpt_ray.reward.functions.extract import alternatives
from hpt_ray.types import RewardResult

RewardFunction = Callable[[str, Any], RewardResult]  # of a response and a ground truth


def no_argument(argument: str) -> None:
    if argument:
        raise ValueError("it takes no argument")


def any_ground_truth(ground_truth: Any) -> None:
    """The user's reward function decides what a ground truth is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFunctionKind:
    """A row of the table.

    `make(argument)` gives the reward function; it runs in a grading process. `check_argument` and
    `check_ground_truth` raise ValueError with what is wrong. `usage`: how it is written in a configuration;
    `doc`: what makes a response correct. Both stand in messages.
    """

    make: Callable[[str], RewardFunction]
    check_argument: Callable[[str], object] = no_argument
    check_ground_truth: Callable[[Any], object] = any_ground_truth
    usage: str = ""
    doc: str = ""


REWARD_FUNCTIONS: dict[str, RewardFunctionKind] = {
    "math": RewardFunctionKind(
        make=math.make,
        check_argument=math.check_argument,
        check_ground_truth=math.references,
        usage="math or math:lenient",
        doc="the last box means the same as the reference; `lenient` also reads an answer without a box",
    ),
    "boxed": RewardFunctionKind(
        make=lambda _: text.boxed,
        check_ground_truth=alternatives,
        usage="boxed",
        doc="the last box holds exactly the reference",
    ),
    "gsm8k": RewardFunctionKind(
        make=lambda _: gsm8k.grade,
        check_ground_truth=gsm8k.references,
        usage="gsm8k",
        doc="the number after `####`, in the last box or at the end equals the reference",
    ),
    "choice": RewardFunctionKind(
        make=lambda _: choice.grade,
        check_ground_truth=choice.references,
        usage="choice",
        doc="the label of the choice, A to J or 1 to 9, is the reference",
    ),
    "exact": RewardFunctionKind(
        make=lambda _: text.exact,
        check_ground_truth=alternatives,
        usage="exact",
        doc="the whole response is the reference",
    ),
    "regex": RewardFunctionKind(
        make=text.make_regex,
        check_argument=text.check_pattern,
        check_ground_truth=alternatives,
        usage="regex:PATTERN",
        doc="the last match of the pattern, or its first group, is the reference",
    ),
    "python": RewardFunctionKind(
        make=custom.make,
        check_argument=custom.check_argument,
        usage="python:FILE:FUNCTION",
        doc="your function `(response, ground_truth)` gives true or a score of at least 1",
    ),
    "http": RewardFunctionKind(
        make=remote.make,
        check_argument=remote.check_argument,
        usage="http:URL",
        doc="your server gives a score of at least 1",
    ),
}


def check_reward_function(spec: str) -> None:
    """Raise UserError unless `spec` names a reward function that can be built."""
    _kind_and_argument(spec)


def check_ground_truth(ground_truth: Any, spec: str) -> str | None:
    """Why the reward function cannot use this ground truth, or None if it can. Reads only its form."""
    kind, _ = _kind_and_argument(spec)
    try:
        kind.check_ground_truth(ground_truth)
    except ValueError as error:
        return str(error)
    return None


def build(spec: str) -> RewardFunction:
    """The reward function that `spec` names. Called inside the grading process."""
    kind, argument = _kind_and_argument(spec)
    return kind.make(argument)


def suggestion(name: str, known: Collection[str]) -> str:
    """What a user who wrote `name` may have meant, and all that there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return (f"Did you mean `{near[0]}`? " if near else "") + f"There are: {', '.join(known)}."


def _kind_and_argument(spec: str) -> tuple[RewardFunctionKind, str]:
    """Raises UserError with what is wrong and how to write it."""
    name, _, argument = spec.partition(":")
    if name not in REWARD_FUNCTIONS:
        raise UserError(f"Unknown reward function `{spec}`. {suggestion(name, REWARD_FUNCTIONS)}")
    kind = REWARD_FUNCTIONS[name]
    try:
        kind.check_argument(argument)
    except ValueError as error:
        about = f" ({kind.doc})" if kind.doc else ""
        usage = kind.usage or name
        raise UserError(f"Reward function `{spec}`: {error}. Write it as `{usage}`{about}.") from error
    return kind, argument
