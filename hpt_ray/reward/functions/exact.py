"""`exact`: right if the whole response is the reference, blanks at both ends aside."""

from __future__ import annotations

from typing import Any

from hpt_ray.reward.functions.extract import alternatives
from hpt_ray.types import Outcome, RewardResult


def references(ground_truth: Any) -> list[str]:
    return [text.strip() for text in alternatives(ground_truth)]


def compare(answer: str, ground_truth: Any) -> RewardResult:
    """The result on an answer that has one spelling."""
    right = references(ground_truth)
    answer = answer.strip()
    if not answer:
        return RewardResult(0.0, Outcome.NO_ANSWER)
    if answer in right:
        return RewardResult(1.0, Outcome.CORRECT, answer)
    return RewardResult(0.0, Outcome.WRONG, answer)


def grade(response: str, ground_truth: Any) -> RewardResult:
    return compare(response, ground_truth)
