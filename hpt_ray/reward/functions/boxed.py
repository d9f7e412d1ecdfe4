r"""`boxed`: right if the last balanced `\boxed{…}` holds exactly the reference, blanks aside.

For answers that have one spelling, as in the small task. No mathematics: `1/2` is not `0.5`.
"""

from __future__ import annotations

from typing import Any

from hpt_ray.reward.functions.extract import alternatives, last_boxed, without_blanks
from hpt_ray.types import Outcome, RewardResult


def references(ground_truth: Any) -> list[str]:
    return [without_blanks(text) for text in alternatives(ground_truth)]


def grade(response: str, ground_truth: Any) -> RewardResult:
    right = references(ground_truth)
    answer = last_boxed(response)
    if answer is None or not answer.strip():
        return RewardResult(0.0, Outcome.NO_ANSWER)
    if without_blanks(answer) in right:
        return RewardResult(1.0, Outcome.CORRECT, answer)
    return RewardResult(0.0, Outcome.WRONG, answer)
