r"""Reward functions for answers that have one spelling, as in the small task. No mathematics: `1/2` is not `0.5`.

`boxed`: correct if the last balanced `\boxed{…}` after the thinking holds exactly the reference, blanks aside.
`exact`: correct if the whole response is the reference, blanks at both ends aside.
`regex:PATTERN`: the last match of the pattern in the response must be the reference, end blanks aside. With a
group in the pattern the first group is the answer, else the whole match. `^` and `$` match at line ends. A
pattern that backtracks without end is killed by the time limit like anything else.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

from hpt_ray.reward.functions.extract import NO_ANSWER, after_thinking, alternatives, answered, last_boxed
from hpt_ray.types import RewardResult


def boxed(response: str, ground_truth: Any) -> RewardResult:
    references = ["".join((last_boxed(text) or text).split()) for text in alternatives(ground_truth)]
    answer = last_boxed(after_thinking(response))
    if answer is None or not answer.strip():
        return NO_ANSWER
    return answered(answer, "".join(answer.split()) in references)


def exact(response: str, ground_truth: Any) -> RewardResult:
    references = [text.strip() for text in alternatives(ground_truth)]
    answer = response.strip()
    return answered(answer, answer in references) if answer else NO_ANSWER


def check_pattern(pattern: str) -> None:
    if not pattern:
        raise ValueError("the pattern is missing")
    try:
        re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"the pattern cannot be read ({error})") from error


def make_regex(pattern: str) -> Callable[[str, Any], RewardResult]:
    compiled = re.compile(pattern, re.MULTILINE)
    group = 1 if compiled.groups else 0

    def regex(response: str, ground_truth: Any) -> RewardResult:
        last = deque(compiled.finditer(response), maxlen=1)
        return exact((last[0].group(group) or "") if last else "", ground_truth)

    return regex
