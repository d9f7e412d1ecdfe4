r"""`math`: the last balanced `\boxed{…}` must mean the same as the reference.

Three stages, each only when the one before did not decide: equal text after `normalise`; two plain
integers, compared as such; equivalence by math-verify (sympy). `math:lenient` also accepts an answer
without a box, where math-verify finds one at the end of the response ("the answer is $x^2$").
The reference may be a string (plain, in `$…$` or in a `\boxed{…}`), a number, or a list of alternatives.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from hpt_ray.reward.functions.extract import NO_ANSWER, alternatives, answered, last_boxed, unparsable
from hpt_ray.types import RewardResult

MAX_ANSWER_CHARS = 2000  # a longer one that is not the reference letter by letter is not read
LENIENT_TAIL_CHARS = 1000  # where an answer without a box is looked for

_INTEGER = re.compile(r"[-+]?\d{1,1000}")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")  # 1,234: a number, or a list of two
_NAME = re.compile(r"^[a-zA-Z](?:_\{?\w+\}?)?\s*=\s*")  # x = 5
_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])", ""),
        (r"(?<=\d)(?:,\\!\s*|\{,\})(?=\d{3})", ""),  # 10,\!080 and 10{,}080
        (r"(?<!\\)\\[!,;: ]|\\quad|\\qquad|~", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),  # \frac12
        (r"\^\s*\{?\\circ\}?|\\degree(?![a-zA-Z])", ""),
        (r"\\\$|\$", ""),
        (r"\\%", "%"),
        (r"\\geqslant(?![a-zA-Z])", r"\\geq"),
        (r"\\leqslant(?![a-zA-Z])", r"\\leq"),
        (r"\\(begin|end)\{bmatrix\}", r"\\\1{pmatrix}"),
        (r"[−–]", "-"),
    ]
]
# A unit at the end, after a number: `5.4 \text{ cents}`, `15\mbox{ cm}^2`, `270/7 \text{ degrees}`.
_UNIT = re.compile(r"(?<=[\d}])\s*\\(?:text|mbox|mathrm|textrm)\{[^{}]*[a-zA-Z][^{}]*\}(?:\^\{?\d\}?)?$")
_TEXT = re.compile(r"\\(?:text|textbf|mbox|mathrm|textrm)\{([^{}]*)\}")


def normalise(answer: str) -> str:
    r"""An answer without its typography: `\left( 3,\ \dfrac12 \right)` becomes `( 3, \frac{1}{2} )`.

    Only changes that keep the meaning whatever the prompt asks; blanks are compared away later.
    """
    answer = answer.strip()
    for pattern, new in _REWRITES:
        answer = pattern.sub(new, answer)
    return _UNIT.sub("", answer.strip().removesuffix(".").strip()).strip()


def _readings(answer: str) -> set[str]:
    """Spellings of a normalised answer that another spelling of it shares: for comparing only."""
    text = "".join(_TEXT.sub(r"\1", answer).split()).removesuffix("%")
    if len(text) == 3 and text[0] == "(" and text[-1] == ")":  # the label of a choice
        text = text[1:-1]
    return {text, text.replace(",", "")} if _GROUPED.fullmatch(answer) else {text}


def _same_text(answer: str, reference: str) -> bool:
    """Whether two normalised answers are spelled alike. `x = 5` is `5`, but not `y = 5`."""
    if ("=" in answer) != ("=" in reference):
        answer, reference = _NAME.sub("", answer), _NAME.sub("", reference)
    return not _readings(answer).isdisjoint(_readings(reference))


def references(ground_truth: Any) -> list[str]:
    r"""The alternatives, out of their `\boxed{}`, normalised. Raises ValueError if one of them is empty."""
    texts = []
    for text in alternatives(ground_truth):
        boxed = last_boxed(text)
        text = normalise(text if boxed is None else boxed)
        if not text:
            raise ValueError("the ground truth is empty")
        texts.append(text)
    return texts


def check_argument(argument: str) -> None:
    if argument not in ("", "lenient"):
        raise ValueError(f"`{argument}` is not a way to extract answers")


def make(argument: str) -> Callable[[str, Any], RewardResult]:
    lenient = argument == "lenient"
    import math_verify  # noqa: F401  # loading counts here, not within the first answer's time limit

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that our pool keeps the time

    def grade(response: str, ground_truth: Any) -> RewardResult:
        right = references(ground_truth)
        answer = last_boxed(response)
        if answer is None and lenient:
            return _grade_unboxed(response, right)
        if answer is None or not answer.strip():
            return NO_ANSWER
        return compare(answer, right)

    return grade


def compare(answer: str, right: list[str]) -> RewardResult:
    """The result on an extracted answer, against normalised references."""
    normal = normalise(answer)
    if any(_same_text(normal, text) for text in right):
        return answered(answer, True)
    if _INTEGER.fullmatch(normal) and all(_INTEGER.fullmatch(text) for text in right):
        return answered(answer, int(normal) in [int(text) for text in right])
    if len(normal) > MAX_ANSWER_CHARS:
        return unparsable(answer, f"longer than {MAX_ANSWER_CHARS} characters")
    return _verify(_parse(normal), right, answer)


def _verify(parsed: list[Any], right: list[str], answer: str) -> RewardResult:
    """Equivalence by math-verify. `parsed` is what it read: an expression, its text, or both."""
    from math_verify import verify

    if all(isinstance(value, str) for value in parsed):
        return unparsable(answer, "not a mathematical expression")
    for text in right:
        try:
            if verify(_parse_reference(text), parsed, timeout_seconds=None, raise_on_error=True):
                return answered(answer, True)
        except MemoryError:
            raise
        except Exception as error:  # sympy raises many kinds on pairs it cannot compare
            return unparsable(answer, f"not comparable ({type(error).__name__})")
    return answered(answer, False)


def _parse(latex: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return parse(f"\\boxed{{{latex}}}", config, parsing_timeout=None)  # type: ignore[arg-type]


@lru_cache(maxsize=256)  # the n rollouts of a prompt share its reference
def _parse_reference(latex: str) -> list[Any]:
    return _parse(latex)


def _grade_unboxed(response: str, right: list[str]) -> RewardResult:
    from math_verify import parse

    parsed = parse(response[-LENIENT_TAIL_CHARS:], parsing_timeout=None)  # type: ignore[arg-type]
    texts = [value for value in parsed if isinstance(value, str)]
    if not parsed:
        return NO_ANSWER
    answer = texts[-1] if texts else str(parsed[0])
    result = compare(answer, right) if texts else None
    return result if result is not None and result.correct else _verify(parsed, right, answer)
