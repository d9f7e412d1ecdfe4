"""Finding an answer in a response, reading a ground truth, stating a result: what reward functions share.

Everything here is a pure function of strings and takes time linear in their length, whatever they hold.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from hpt_ray.types import Outcome, RewardResult

NO_ANSWER = RewardResult(0.0, Outcome.NO_ANSWER)
MAX_LINK_CHARS = 1000  # between the beginnings of two boxes of one answer
MAX_GAP_CHARS = 80  # between the end of a box and the beginning of the next
MAX_PARTS = 100  # of one answer
MAX_BARE_CHARS = 200  # of a box without braces

# An escaped character (`\{`, `\\`) is not a brace, so it is passed over.
_TOKENS = re.compile(r"(?P<box>\\+(?:boxed|fbox)(?![a-zA-Z])\s*\{?)|\\.|[{}]", re.DOTALL)
# `\boxed 5` and `\boxed\frac{1}{2}`, but not the words after a mere mention of `\boxed`.
_BARE = re.compile(
    r"(?![a-zA-Z]{2})(?:\\(?!q?quad|end|right|text|boxed|fbox)[a-zA-Z]+(?:\s+(?=[\d{\\]))?|\\%"
    r"|\{(?:[^{}]|\{[^{}]*\})*\}|\([^()\n]*\)|[.,](?=\d)|[^\s${}()\[\]\\.,;:])+"
)
_NAME_BEFORE = re.compile(
    r"(?P<name>[a-zA-Z](?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?|\([a-zA-Z](?:, ?[a-zA-Z])+\))\s*&?=[\s$]*$"
)
_TYPOGRAPHY = re.compile(
    r"\\(?:(?:q?quad|left|right|newline)(?![a-zA-Z])|(?:begin|end)\s*\{[a-z]+\*?\}|(?:text\w*|mbox|mathrm)\s*\{"
    r"|[,;:! ()\[\]\\])|[${}&~*]"
)
_WORDS = re.compile(r"\w+|[^\w\s]")
_CONJUNCTIONS = {"and", "or"}
# Words between two boxes that take the first one back, or conclude the second from it.
_NO_LINK = re.compile(
    r"(?:actually|answer|are|but|correct|equivalently|final|finally|gives|hence|however|implies|instead|is|it"
    r"|means|no|not|now|should|so|that|then|therefore|this|thus|wait|was|we|which|wrong|yields)"
)


_WRITTEN_LIST = re.compile(r"""\s*\[\s*(["']).{1,10000}\1\s*\]\s*""", re.DOTALL)


class _Box(NamedTuple):
    start: int  # of the command
    begin: int  # of the content
    end: int
    close: int  # behind the box


def after_thinking(response: str) -> str:
    r"""What a response says once it has thought: only this can hold its answer.

    The text after the last `</think>`, up to a `<think>` that is never closed.
    Example: `after_thinking(r"<think>maybe 4</think>It is 5.<think>Or")` is `"It is 5."`.
    """
    # From the right, which is faster than `in` on a long text; and most hold no `>`.
    if response.rfind("think>", 0, response.rfind(">") + 1) < 0:
        return response
    return response.rpartition("</think>")[2].partition("<think>")[0]


def last_boxed(text: str) -> str | None:
    r"""What stands in the balanced `\boxed{…}` that begins last, or None.

    `\fbox{…}` is a box as well, and `\boxed 5` one without braces.
    Example: `last_boxed(r"\boxed{3} so \boxed{\frac{1}{2}}. \boxed{4")` is `r"\frac{1}{2}"`.
    """
    found = _boxes(text, most=1)
    return text[found[-1].begin : found[-1].end] if found else None


def boxed_answer(text: str) -> list[str] | None:
    r"""The parts of the answer: the last box, and those before it that only a list's words part from it.

    Names before the boxes are kept where they differ. None: there is no box.
    Example: `boxed_answer(r"\boxed{1}. So $x=\boxed{2}$ and $y=\boxed{3}$")` is `["x=2", "y=3"]`.
    """
    found = _boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first and _is_link(text[found[first - 1].close : found[first].start]):
        first -= 1
    contents = [text[box.begin : box.end].strip() for box in found[first:]]
    if len(contents) > 1:
        befores = [text[max(box.start - MAX_GAP_CHARS, 0) : box.start] for box in found[first:]]
        names = [match["name"] for before in befores if (match := _NAME_BEFORE.search(before))]
        if len(set(names)) == len(contents):
            contents = [f"{name}={content}" for name, content in zip(names, contents, strict=True)]
    return list(dict.fromkeys(contents))


def _is_link(gap: str) -> bool:
    """Whether the text between two boxes makes them parts of one answer: `, `, ` and $y=`, ` cm or `."""
    if len(gap) > MAX_GAP_CHARS:
        return False
    words = _WORDS.findall(_TYPOGRAPHY.sub(" ", _NAME_BEFORE.sub("", gap)).lower())
    if any(_NO_LINK.fullmatch(word) or not (word.isalnum() or word in ",;.:()-•") for word in words):
        return False
    if "-" in words and "\n" not in gap:  # a difference or a range, not the mark of an item
        return False
    others = [word for word in words if word.isalnum() and len(word) > 1]  # not the label of a part: (b)
    named = [word for word in others if word not in _CONJUNCTIONS]
    if not others:
        return True
    if "." in words:  # the end of a sentence
        return False
    return len(named) <= 4 if len(named) < len(others) else len(named) == 1 and words[-1] == ","


def _boxes(text: str, most: int = MAX_PARTS) -> list[_Box]:
    """The last boxes that hold no other box, in order; of `most` or more, those that `boxed_answer` could join."""
    last = start = _find_box(text, 0, len(text))
    if last < 0:
        return []
    for _ in range(most - 1):
        before = _find_box(text, max(start - MAX_LINK_CHARS, 0), start)
        if before < 0:
            break
        start = before
    # Nearly always the last box is whole, and the text before these is not looked at.
    return _scan(text, start, last) or (_scan(text, 0, last) if start else [])


def _find_box(text: str, begin: int, end: int) -> int:
    found = text.rfind("\\boxed", begin, end)
    return max(found, text.rfind("\\fbox", max(found, begin), end))


def _scan(text: str, start: int, last: int) -> list[_Box]:
    open_braces: list[tuple[int, int] | None] = []  # a box's beginning and its content's; None: a plain brace
    found: list[_Box] = []
    for match in _TOKENS.finditer(text, start):
        token = match.group()
        if token == "{":
            open_braces.append(None)
        elif token == "}":
            box = open_braces.pop() if open_braces else None
            if box is not None and not (found and found[-1].start >= box[1]):  # it holds no other
                found.append(_Box(*box, match.start(), match.end()))
        elif match["box"] and token.endswith("{"):
            open_braces.append(match.span())
        elif match["box"] and (bare := _BARE.match(text, match.end(), match.end() + MAX_BARE_CHARS)):
            found.append(_Box(match.start(), *bare.span(), bare.end()))
        if match.end() > last and found and not open_braces:
            break
    return found


def answered(answer: str, correct: bool, stage: str | None = None) -> RewardResult:
    """The result on an answer that could be compared; `stage` says what decided, where there are several."""
    return RewardResult(float(correct), Outcome.CORRECT if correct else Outcome.WRONG, answer, stage)


def unparsable(answer: str, detail: str) -> RewardResult:
    """The result on an answer that could not be read; `detail` says why."""
    return RewardResult(0.0, Outcome.UNPARSABLE, answer, detail)


def read_alternatives(ground_truth: Any) -> list[str]:
    """`alternatives`, also of a list that is written as a text, in JSON or Python: `["2", "3"]`, but not `[2, 3]`."""
    if isinstance(ground_truth, str) and _WRITTEN_LIST.fullmatch(ground_truth):
        try:
            return alternatives(ast.literal_eval(ground_truth.strip()))
        except (ValueError, SyntaxError):
            pass
    return alternatives(ground_truth)


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
