"""From what a user's reward function or server gave back to a `RewardResult`.

A number is the score; a response is correct when its score is at least 1. A dict has a `score`, and may have an
`outcome`, `extracted` (or verl's `pred`) and `detail`; its other numbers become metrics. A list must hold one such
value, for it was asked about one response.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from hpt_ray.types import Outcome, RewardResult

MAX_METRICS = 32  # of one response
FIELDS = ("score", "outcome", "extracted", "pred", "detail")


def to_result(value: Any) -> RewardResult:
    """Raises TypeError or ValueError with what is wrong."""
    if isinstance(value, RewardResult):
        _finite(value.score)
        return value
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", None):
        if len(value) != 1:
            raise ValueError(f"it returned {len(value)} values for one response")
        return to_result(value[0])
    score = _number(value)
    if score is None:
        hint = " (is a `return` missing?)" if value is None else ""
        what = "None" if value is None else f"{reprlib.repr(value)}, a {type(value).__name__}"
        raise TypeError(
            f"it returned {what}{hint}; a reward function returns a number, a bool, a dict with `score`, a list "
            "of one of these, or a RewardResult"
        )
    return RewardResult(_finite(score), Outcome.CORRECT if score >= 1 else Outcome.WRONG)


def _from_mapping(value: Mapping[Any, Any]) -> RewardResult:
    if "score" not in value:
        raise ValueError(
            f"it returned a dict without `score`; it has {', '.join(map(str, value)) or 'nothing'}"
        )
    result = to_result(value["score"])
    extracted = value.get("extracted", value.get("pred"))
    detail = value.get("detail")
    numbers = {str(name).replace("/", "_"): _number(x) for name, x in value.items() if name not in FIELDS}
    metrics = {name: x for name, x in numbers.items() if x is not None and math.isfinite(x)}
    return RewardResult(
        result.score,
        Outcome(value["outcome"]) if "outcome" in value else result.outcome,
        None if extracted is None else str(extracted),
        None if detail is None else str(detail),
        dict(list(metrics.items())[:MAX_METRICS]),
    )


def _number(value: Any) -> float | None:
    """A number or truth value of Python, numpy or torch; None for anything else."""
    if hasattr(value, "item") and not getattr(value, "ndim", None):
        value = value.item()
    return float(value) if isinstance(value, (bool, int, float)) else None


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"the reward function's score is {score}")
    return score
