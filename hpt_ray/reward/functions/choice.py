r"""`choice`: multiple choice (ARC, GPQA, MMLU). The answer is a label: a letter A to J, or a digit 1 to 9.

The answer is the first of these that the response has after its thinking: the last balanced `\boxed{…}` (and those
joined to it) that holds a label (`B`, `(B)`, `\text{B}`, `B. 12 apples`), the last phrase such as `answer is (B)` or
`Answer: B`, or the whole response when it is no more than a label. A box without a label is `unparsable`, and so is one
with several; `answer is B or C` is wrong. Letters are compared without regard to case; a lower-case letter is read only
in parentheses and where nothing else stands.
"""

from __future__ import annotations

import re
from typing import Any

from hpt_ray.reward.functions.extract import (
    NO_ANSWER,
    after_thinking,
    answered,
    boxed_answer,
    read_alternatives,
    unparsable,
)
from hpt_ray.types import RewardResult

_WRAPPING = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm|bf)\b|[\s${}*\\]")
_ALONE = re.compile(r"\(?([A-Ja-j1-9])[).:]*")
_LEADING = re.compile(  # of a label with its text: `(B) 12`, `B. 12`, but no second label
    r"(?:\(([A-J1-9])\)|([A-J1-9])[).:])(?!(?:,|;|/|&|or|and)*\(?[A-J](?:[).:,]|$))"
)
_PHRASE = re.compile(
    r"\b(?:answer|choice|option)\b\W{0,5}(?:\s*(?:is|are|would be|must be|:)\W{0,8})?"
    r"(?:(?:option|choice)\W{0,3})?(?:\\(?:text|textbf|mathrm|mathbf)\{)?\(?([A-J1-9])(?![\w'’+#]|[.,]\d)"
    r"((?:\W{0,4}(?:,|/|&|\bor\b|\band\b)\W{0,4}[A-J1-9](?![\w'’]|\s+(?:is|are|was|has|does|can)\b))?)",
    re.IGNORECASE,
)


def references(ground_truth: Any) -> list[str]:
    labels = []
    for text in read_alternatives(ground_truth):
        label = _label(text)
        if label is None:
            raise ValueError(f"the ground truth is no label of a choice (A to J, 1 to 9): {text[:60]!r}")
        labels.append(label)
    return labels


def grade(response: str, ground_truth: Any) -> RewardResult:
    right = references(ground_truth)
    response = after_thinking(response)
    if parts := boxed_answer(response):
        answer = ", ".join(parts)
        label = _label(answer)
        if label is None:
            return unparsable(answer, "not one label of a choice in the box")
    else:
        label = _phrase(response) or _label(response)
        if label is None:
            return NO_ANSWER
    return answered(label, label in right)


def _label(text: str) -> str | None:
    bare = _WRAPPING.sub("", text)
    if match := _ALONE.fullmatch(bare):
        return match.group(1).upper()
    if match := _LEADING.match(bare):
        return match.group(1) or match.group(2)
    return None


def _phrase(response: str) -> str | None:
    """The last label, with what else it names: `B or C`."""
    # `a` after "answer" is nearly always an article, so a label in running text is upper case or a digit.
    found = None
    for match in _PHRASE.finditer(response):
        if not match[1].islower() or response[match.start(1) - 1 : match.end(1) + 1] == f"({match[1]})":
            found = match
    return (found[1] + found[2]).upper() if found else None
