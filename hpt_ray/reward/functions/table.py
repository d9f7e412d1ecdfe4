r"""The table of reward functions: names in configurations → how to make the reward function and what it accepts.

A reward function is named `NAME` or `NAME:ARGUMENT`, e.g. `math`, `math:lenient`, `regex:Answer: (.*)`,
`python:grading.py:grade`, `http:http://host:8000/grade`. `check_reward_function` refuses mistakes before a run
starts, `build` makes the function inside a grading process. To add one: a function here and a row in the table;
or, from outside, a file named in `run.plugins` that says

    REWARD_FUNCTIONS["mine"] = RewardFunctionKind("mine", "what makes a response correct", lambda _: my_function)

Reading this table imports no reward function's library: sympy is imported where `math` is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hpt_ray.config.references import public
from hpt_ray.errors import UserError
from hpt_ray.reward.functions import choice, custom, gsm8k, math, remote, text
from hpt_ray.reward.functions.extract import alternatives
from hpt_ray.types import RewardResult

RewardFunction = Callable[..., RewardResult]  # of a response, a ground truth and, with `takes_row`, its `Row`


def no_argument(argument: str) -> None:
    if argument:
        raise ValueError("it takes no argument")


def any_ground_truth(ground_truth: Any) -> None:
    """The user's reward function decides what a ground truth is."""


@dataclass(frozen=True, slots=True)
class RewardFunctionKind:
    """A row of the table. The checks raise ValueError with what is wrong."""

    usage: str  # how it is written in a configuration
    doc: str  # what makes a response correct
    make: Callable[..., RewardFunction]  # of the argument
    check_ground_truth: Callable[[Any], object] = any_ground_truth
    check_argument: Callable[[str], object] = no_argument
    takes_row: bool = False  # the function has a third argument, the `Row` that the response answers
    # `make` takes the headers of `reward.headers`, and the argument as messages may show it, too.
    takes_headers: bool = False


REWARD_FUNCTIONS: dict[str, RewardFunctionKind] = {
    "boxed": RewardFunctionKind(
        "boxed", "the last box holds exactly the reference", lambda _: text.boxed, alternatives
    ),
    "math": RewardFunctionKind(
        "math or math:lenient",
        "the last box means the same as the reference; `lenient`: or the end of the response",
        math.make,
        math.references,
        math.check_argument,
    ),
    "gsm8k": RewardFunctionKind(
        "gsm8k",
        "the number after `####`, in the last box or at the end equals the reference",
        lambda _: gsm8k.grade,
        gsm8k.references,
    ),
    "choice": RewardFunctionKind(
        "choice", "the label of a choice, A to J or 1 to 9", lambda _: choice.grade, choice.references
    ),
    "exact": RewardFunctionKind(
        "exact", "the whole response is the reference", lambda _: text.exact, alternatives
    ),
    "regex": RewardFunctionKind(
        "regex:PATTERN", "the last match is the reference", text.make_regex, alternatives, text.check_pattern
    ),
    "python": RewardFunctionKind(
        "python:FILE:FUNCTION",
        "your function",
        custom.make_python,
        check_argument=custom.check_python,
        takes_row=True,
    ),
    "http": RewardFunctionKind(
        "http:URL",
        "your server",
        remote.make_http,
        check_argument=remote.check_http,
        takes_row=True,
        takes_headers=True,
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


def ground_truths_of(specs: Collection[str]) -> dict[str, Any]:
    """What `load_prompts` is to ask of the ground truths for these: must there be one, may it be an object."""
    return {
        "needs_ground_truth": any(check_ground_truth(None, spec) for spec in specs),
        "objects": any(check_ground_truth({"": ""}, spec) is None for spec in specs),
    }


def identity(spec: str) -> str:
    """What decides its results: how it is named, and for a function of the user the text of its file."""
    name, argument = name_and_argument(spec)
    return public(spec) + (f" (text {custom.version(argument)})" if name == "python" else "")


def takes_row(spec: str) -> bool:
    """Whether the function is called with the `Row` too. False where there is no such function."""
    kind = REWARD_FUNCTIONS.get(name_and_argument(spec)[0])
    return kind is not None and kind.takes_row


def takes_headers(spec: str) -> bool:
    """Whether the function asks a server. False where there is no such function."""
    kind = REWARD_FUNCTIONS.get(name_and_argument(spec)[0])
    return kind is not None and kind.takes_headers


def build(spec: str, headers: Mapping[str, str] | None = None) -> RewardFunction:
    """The reward function that `spec` names. Called inside the grading process."""
    kind, argument = _kind_and_argument(spec)
    further = (headers or {}, name_and_argument(public(spec))[1]) if kind.takes_headers else ()
    return kind.make(argument, *further)


def suggestion(name: str, known: Collection[str]) -> str:
    """What a user who wrote `name` may have meant, and all that there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return (f"Did you mean `{near[0]}`? " if near else "") + f"There are: {', '.join(known)}."


def name_and_argument(spec: str) -> tuple[str, str]:
    """Name and argument. An address alone is one of `http`."""
    if spec.startswith(("http://", "https://")):
        return "http", spec
    name, _, argument = spec.partition(":")
    return name, argument


def _kind_and_argument(spec: str) -> tuple[RewardFunctionKind, str]:
    """Raises UserError with what is wrong and how to write it."""
    name, argument = name_and_argument(spec)
    if name not in REWARD_FUNCTIONS:
        of_file = f"Did you mean `python:{name}:{argument or 'FUNCTION'}`?"
        hint = of_file if name.endswith(".py") else suggestion(name, REWARD_FUNCTIONS)
        raise UserError(f"Unknown reward function `{public(spec)}`. {hint}")
    kind = REWARD_FUNCTIONS[name]
    try:
        kind.check_argument(argument)
    except ValueError as error:
        raise UserError(
            f"Reward function `{public(spec)}`: {error}. Write it as `{kind.usage}` ({kind.doc})."
        ) from error
    return kind, argument
