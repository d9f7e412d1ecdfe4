r"""`gsm8k`: a number, found by a fixed rule and compared exactly.

The answer is the first of these that the response has after its thinking: what follows the last `####` on its
line, the last balanced `\boxed{…}` and those joined to it, the last number anywhere. Dollar signs, thousands
separators, a percent sign and words around the number do not count; `18`, `18.0`, `$18.00` and `10 + 8 = 18` are the
same. Something after `####` or in the box that does not hold one single number (`17 or 18`, `1/2`) is `unparsable`. A
ground truth may be a whole solution that ends in `#### N`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from hpt_ray.reward.functions.extract import (
    NO_ANSWER,
    after_thinking,
    answered,
    boxed_answer,
    read_alternatives,
    unparsable,
)
from hpt_ray.reward.functions.notation import THOUSANDS
from hpt_ray.types import RewardResult

# A sign behind a digit is a difference's or a range's: 1-3.
_NUMBER = re.compile(r"(?:(?<![\d)])[-+−])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?")
_POWER = re.compile(r"(?<=[a-z])\}?\^\{?[23]\}?")  # of a unit: cm^2
_MARK = "####"
_DECORATION = str.maketrans("", "", "$,")
MAX_DIGITS = 100  # longer ones are no answer to a word problem


def references(ground_truth: Any) -> list[Decimal]:
    values = []
    for text in read_alternatives(ground_truth):
        value = _number(text.rpartition(_MARK)[2])
        if value is None:
            raise ValueError(f"the ground truth holds no number, or several: {text[:60]!r}")
        values.append(value)
    return values


def grade(response: str, ground_truth: Any) -> RewardResult:
    right = references(ground_truth)
    response = after_thinking(response)
    answer = _marked(response)
    if answer is None and (parts := boxed_answer(response)):
        answer = ", ".join(parts)
    if answer is None:
        numbers = _NUMBER.findall(response)
        if not numbers:
            return NO_ANSWER
        answer = numbers[-1]
    value = _number(answer)
    if value is None:
        return unparsable(answer, "not one number")
    return answered(answer, value in right)


def _marked(response: str) -> str | None:
    """What stands on the line after the last `####`."""
    _, mark, rest = response.rpartition(_MARK)
    lines = rest.strip().splitlines()
    return lines[0].strip() if mark and lines else None


def _number(text: str) -> Decimal | None:
    """The one number in a short text, right of its last `=`: `= $1,234.50 per day` is 1234.50."""
    text = _POWER.sub("", THOUSANDS.sub("", text).rpartition("=")[2])
    found = [number.replace("−", "-").translate(_DECORATION) for number in _NUMBER.findall(text)]
    values = {Decimal(number) if len(number) <= MAX_DIGITS else None for number in found}
    return values.pop() if len(values) == 1 else None
