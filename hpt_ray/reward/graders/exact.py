"""`exact`: right if the whole response is the reference, blanks at both ends aside."""

from __future__ import annotations

from typing import Any

from hpt_ray.reward.graders.extract import alternatives
from hpt_ray.types import Outcome, Verdict


def references(ground_truth: Any) -> list[str]:
    return [text.strip() for text in alternatives(ground_truth)]


def compare(answer: str, ground_truth: Any) -> Verdict:
    """The verdict on an answer that has one spelling."""
    right = references(ground_truth)
    answer = answer.strip()
    if not answer:
        return Verdict(0.0, Outcome.NO_ANSWER)
    if answer in right:
        return Verdict(1.0, Outcome.CORRECT, answer)
    return Verdict(0.0, Outcome.WRONG, answer)


def grade(response: str, ground_truth: Any) -> Verdict:
    return compare(response, ground_truth)
