"""`regex:PATTERN`: the last match of the pattern in the response must be the reference, end blanks aside.

With a group in the pattern the first group is the answer, else the whole match. `^` and `$` match at line
ends. A pattern that backtracks without end is killed by the time limit like anything else.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

from hpt_ray.reward.functions import exact
from hpt_ray.types import Outcome, RewardResult


def check_argument(pattern: str) -> None:
    if not pattern:
        raise ValueError("the pattern is missing")
    try:
        re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"the pattern cannot be read ({error})") from error


def make(pattern: str) -> Callable[[str, Any], RewardResult]:
    compiled = re.compile(pattern, re.MULTILINE)
    group = 1 if compiled.groups else 0

    def grade(response: str, ground_truth: Any) -> RewardResult:
        exact.references(ground_truth)
        last = deque(compiled.finditer(response), maxlen=1)
        if not last:
            return RewardResult(0.0, Outcome.NO_ANSWER)
        return exact.compare(last[0].group(group) or "", ground_truth)

    return grade
