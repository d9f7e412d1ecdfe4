r"""`gsm8k`: a number, found by a fixed rule and compared exactly.

The answer is the first of these that the response has after its thinking: what follows the last `####` on its
line, the last balanced `\boxed{…}`, the last number anywhere. Dollar signs, thousands commas, a percent sign and
words around the number do not count; `18`, `18.0` and `$18.00` are the same. Something after `####` or in the box
that holds no number is `unparsable`. A ground truth may be a whole solution that ends in `#### N`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from hpt_ray.reward.functions.extract import (
    NO_ANSWER,
    after_thinking,
    alternatives,
    answered,
    last_boxed,
    unparsable,
)
from hpt_ray.types import RewardResult

_NUMBER = re.compile(r"[-+−]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARK = "####"
MAX_DIGITS = 100  # longer ones are no answer to a word problem


def references(ground_truth: Any) -> list[Decimal]:
    values = []
    for text in alternatives(ground_truth):
        value = _number(text.rpartition(_MARK)[2])
        if value is None:
            raise ValueError(f"the ground truth holds no number: {text[:60]!r}")
        values.append(value)
    return values


def grade(response: str, ground_truth: Any) -> RewardResult:
    right = references(ground_truth)
    response = after_thinking(response)
    answer = _marked(response)
    if answer is None:
        answer = last_boxed(response)
    if answer is None:
        numbers = _NUMBER.findall(response)
        if not numbers:
            return NO_ANSWER
        answer = numbers[-1]
    value = _number(answer)
    if value is None:
        return unparsable(answer, "no number in the answer")
    return answered(answer, value in right)


def _marked(response: str) -> str | None:
    """What stands on the line after the last `####`."""
    _, mark, rest = response.rpartition(_MARK)
    lines = rest.strip().splitlines()
    return lines[0].strip() if mark and lines else None


def _number(text: str) -> Decimal | None:
    """The last number in a short text: `= $1,234.50 per day` is 1234.50."""
    found = _NUMBER.findall(text)
    if not found or len(found[-1]) > MAX_DIGITS:
        return None
    return Decimal(found[-1].replace("−", "-").translate(str.maketrans("", "", "$,")))
