r"""`math`: the answer in the last box, or in the boxes joined to it, must mean the same as the reference.

Each stage runs only when the one before did not decide: equal text after `normalise`; two whole numbers; answers
whose form is their meaning (`forms.py`); sets of real numbers (`intervals.py`); equivalence by math-verify (sympy).
What counts as equal, and why: docs/grading.md. `math:lenient` also accepts an answer without a box, where
math-verify finds one at the end of the response ("the answer is $x^2$"). A result's detail names the stage.
The reference may be a string (plain, in `$…$` or in a `\boxed{…}`), a number, or a list of alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from hpt_ray.reward.functions import equivalence, forms, intervals, units
from hpt_ray.reward.functions.extract import (
    NO_ANSWER,
    after_thinking,
    answered,
    boxed_answer,
    read_alternatives,
    unparsable,
)
from hpt_ray.reward.functions.notation import normalise, scientific
from hpt_ray.types import Outcome, RewardResult

MAX_ANSWER_CHARS = 2000  # a longer one that is not the reference letter by letter is not read
LENIENT_TAIL_CHARS = 1000  # where an answer without a box is looked for

_INTEGER = re.compile(r"[-+]?\d{1,1000}")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")  # 1,234: a number, or a list of two
_NAME = re.compile(r"^[a-zA-Z](?:_\{?\w+\}?)?\s*=\s*|\s*=\s*[a-zA-Z]$")  # x = 5
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}")
# (b), (B) 12 apples or B. 12 apples, but not (B) or (C)
_LABEL = re.compile(
    r"\((\w)\)|(?:\\text\{ ?\(([A-J])\) ?\}|\(([A-J])\) |([A-J])[.)] )(?!.*(?:\(?[A-J]\)|\bor\b)).*"
)
_FURTHER = re.compile(r"(?:\s*(?:[,;]|,?\s+(?:and|or))\s+[-−]?\d+(?:\.\d+)?(?![\w/]))+")  # numbers of a list
_WORD = re.compile(r"[A-Z]?[a-z]{2,}|DNE")
_SAME_AS_WORD = {"dne": "doesnotexist", "zero": "0", "one": "1"} | {
    word: str(number) for word, number in forms.NUMBER_WORDS.items()
}
_COLUMN = re.compile(r"\\begin\{pmatrix\}([^&]+)\\end\{pmatrix\}")


def _readings(answer: str) -> set[str]:
    """Spellings of a normalised answer that another spelling of it shares: for comparing only."""
    text = "".join(_TEXT.sub(r"\1", answer).split()).removesuffix("%")
    if label := _LABEL.fullmatch(answer):  # of a choice, alone or with its text
        return {text, next(filter(None, label.groups()))}
    if _WORD.fullmatch(text):
        return {_SAME_AS_WORD.get(text.lower(), text.lower())}
    if column := _COLUMN.fullmatch(text):  # a vector is written like a point as well
        return {text, "(" + column[1].replace("\\\\", ",") + ")"}
    return {text, text.replace(",", "")} if _GROUPED.fullmatch(answer) else {text}


def _same_text(answer: str, reference: str) -> bool:
    """Whether two normalised answers are spelled alike. `x = 5` is `5`, but not `y = 5`."""
    if ("=" in answer) != ("=" in reference):
        answer, reference = _NAME.sub("", answer), _NAME.sub("", reference)
    return not _readings(answer).isdisjoint(_readings(reference))


def references(ground_truth: Any) -> list[str]:
    r"""The alternatives, out of their `\boxed{}`, normalised. Raises ValueError if one of them is empty."""
    texts = [_reference(text) for text in read_alternatives(ground_truth)]
    if not all(texts):
        raise ValueError("the ground truth is empty")
    return texts


@lru_cache(maxsize=256)  # the n rollouts of a prompt share it
def _reference(text: str) -> str:
    return normalise(_unboxed(text))


@lru_cache(maxsize=256)
def _unboxed(text: str) -> str:
    boxed = boxed_answer(text)
    return text if boxed is None else ", ".join(boxed)


def check_argument(argument: str) -> None:
    if argument not in ("", "lenient"):
        raise ValueError(f"`{argument}` is not a way to extract answers")


def make(argument: str) -> Callable[[str, Any], RewardResult]:
    lenient = argument == "lenient"
    equivalence.load()

    def grade(response: str, ground_truth: Any) -> RewardResult:
        references(ground_truth)  # of no use to any response, or read
        said = after_thinking(response)
        parts = boxed_answer(said)
        if parts is None and lenient:
            return _grade_unboxed(said, ground_truth)
        if parts is None or not all(parts):
            unsaid = parts is None and boxed_answer(response) is not None
            return replace(NO_ANSWER, detail="a box only in the thinking" if unsaid else "no box")
        answer = ", ".join(parts)
        right = _of_same_unit(answer, ground_truth)
        result = compare(answer, right)
        if len(parts) > 1 and not result.correct and all(compare(part, right).correct for part in parts):
            return answered(answer, True, "every box")  # the same answer in several forms
        return result

    return grade


def _of_same_unit(answer: str, ground_truth: Any) -> tuple[str, ...]:
    spelled = map(_unboxed, read_alternatives(ground_truth))
    pairs = zip(references(ground_truth), spelled, strict=True)
    return tuple(text for text, whole in pairs if units.agree(answer, whole))


@lru_cache(maxsize=4096)  # the n rollouts of a prompt often agree
def compare(answer: str, right: tuple[str, ...]) -> RewardResult:
    """The result on an extracted answer, against normalised references."""
    if not right:
        return answered(answer, False, "unit")
    decided = _without_algebra(answer, right)
    return decided if isinstance(decided, RewardResult) else _by_algebra(decided, answer)


def _without_algebra(answer: str, right: Sequence[str]) -> RewardResult | list[tuple[str, str]]:
    """The result where reading decides; else the pairs of answer and reference that only algebra can."""
    normal = normalise(answer)
    if normal in right or any(_same_text(normal, text) for text in right):
        return answered(answer, True, "equal text")
    if _INTEGER.fullmatch(normal) and all(_INTEGER.fullmatch(text) for text in right):
        return answered(answer, int(normal) in [int(text) for text in right], "whole numbers")
    if len(normal) > MAX_ANSWER_CHARS:
        return unparsable(answer, f"longer than {MAX_ANSWER_CHARS} characters")
    undecided, decision = [], None
    for text in right:
        pair = scientific(normal, text)
        decision = forms.decide(*pair) or intervals.decide(*pair)
        if decision is None:
            undecided.append(pair)
        elif decision.equal:
            return answered(answer, True, decision.stage)
    if not undecided and decision is not None:
        return answered(answer, False, decision.stage)
    return undecided


def _by_algebra(undecided: list[tuple[str, str]], answer: str) -> RewardResult:
    readings = {
        normal: equivalence.parse(forms.both_signs(normal)) for normal in {pair[0] for pair in undecided}
    }
    return _verify([(readings[normal], text) for normal, text in undecided], answer)


def _verify(pairs: list[tuple[list[Any], str]], answer: str) -> RewardResult:
    """Equivalence by math-verify to one of the references, each with the answer as it is read beside it."""
    for parsed, text in pairs:
        if all(isinstance(value, str) for value in parsed):  # no expression, only its text
            return unparsable(answer, "not a mathematical expression")
        try:
            if equivalence.equivalent(equivalence.parse_reference(forms.both_signs(text)), parsed):
                return answered(answer, True, "math-verify")
        except MemoryError:
            raise
        except Exception as error:  # sympy raises many kinds on pairs it cannot compare
            return unparsable(answer, f"not comparable ({type(error).__name__})")
    return answered(answer, False, "math-verify")


def _grade_unboxed(response: str, ground_truth: Any) -> RewardResult:
    tail = response[-LENIENT_TAIL_CHARS:]
    parsed = equivalence.parse_end(tail)
    texts = [value for value in parsed if isinstance(value, str)]
    if not parsed:
        return NO_ANSWER
    if not texts:
        return _verify([(parsed, text) for text in references(ground_truth)], str(parsed[0]))
    answer = texts[-1]
    after = tail.rpartition(answer)[2] if answer in tail else ""
    if further := _FURTHER.match(after):  # 5 or 6
        return compare(answer + further[0], tuple(references(ground_truth)))
    right = _of_same_unit(units.with_unit(answer, after), ground_truth)
    if not right:
        return answered(answer, False, "unit")
    decided = _without_algebra(answer, right)
    if isinstance(decided, RewardResult) and decided.outcome is not Outcome.UNPARSABLE:
        return decided
    if not isinstance(decided, RewardResult) and (result := _by_algebra(decided, answer)).correct:
        return result
    return _verify([(parsed, text) for text in right], answer)  # as math-verify reads it among the words
