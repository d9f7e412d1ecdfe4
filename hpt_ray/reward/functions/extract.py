"""Finding an answer in a response, reading a ground truth, stating a result: what reward functions share.

Everything here is a pure function of strings and takes time linear in their length, whatever they hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from hpt_ray.types import Outcome, RewardResult

NO_ANSWER = RewardResult(0.0, Outcome.NO_ANSWER)
_BOX = "\\boxed{"
# An escaped character (`\{`, `\\`) is not a brace, so it is matched first and passed over.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""What stands in the balanced `\boxed{…}` that begins last, or None.

    Example: `last_boxed(r"\boxed{3} so \boxed{\frac{1}{2}}. \boxed{4")` is `r"\frac{1}{2}"`.
    """
    start = text.rfind(_BOX)
    if start < 0 and "\\boxed" not in text:
        return None
    # Nearly always the last box is whole, and only its own characters are looked at.
    return _last_box(text, max(start, 0)) or _last_box(text, 0)


def _last_box(text: str, start: int) -> str | None:
    open_boxes: list[int | None] = []  # where the content of each open brace begins; None: a plain brace
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text, start):
        token = match.group()
        if token == "{":
            open_boxes.append(None)
        elif token == "}":
            begin = open_boxes.pop() if open_boxes else None
            if begin is not None and (best is None or begin > best[0]):
                best = (begin, match.start())
        elif token.startswith("\\boxed"):
            open_boxes.append(match.end())
        if best is not None and not open_boxes and start > 0:
            break
    return None if best is None else text[slice(*best)]


def answered(answer: str, correct: bool) -> RewardResult:
    """The result on an answer that could be compared."""
    return RewardResult(float(correct), Outcome.CORRECT if correct else Outcome.WRONG, answer)


def unparsable(answer: str, detail: str) -> RewardResult:
    """The result on an answer that could not be read; `detail` says why."""
    return RewardResult(0.0, Outcome.UNPARSABLE, answer, detail)


def alternatives(ground_truth: Any) -> list[str]:
    """The ground truth as texts, any of which is correct: from a string, a number, or a list of them.

    Raises ValueError with the reason when it is missing or cannot be an answer.
    """
    if hasattr(ground_truth, "tolist"):  # a numpy value, as parquet readers give
        ground_truth = ground_truth.tolist()
    if isinstance(ground_truth, str):
        if not ground_truth.strip():
            raise ValueError("the ground truth is empty")
        return [ground_truth]
    if ground_truth is None:
        raise ValueError("the ground truth is missing")
    if isinstance(ground_truth, bool):
        raise ValueError("the ground truth is a truth value; expected a string, a number or a list of these")
    if isinstance(ground_truth, int):
        return [str(ground_truth)]
    if isinstance(ground_truth, float):
        if not math.isfinite(ground_truth):
            raise ValueError(f"the ground truth is {ground_truth}")
        return [str(int(ground_truth)) if ground_truth.is_integer() else repr(ground_truth)]
    if isinstance(ground_truth, Iterable) and not isinstance(ground_truth, (bytes, dict)):
        texts = [text for value in ground_truth for text in alternatives(value)]
        if not texts:
            raise ValueError("the ground truth is an empty list")
        return texts
    raise ValueError(
        f"the ground truth is a {type(ground_truth).__name__}; expected a string, a number or a list of these"
    )
