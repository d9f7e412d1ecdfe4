"""From what a reward function or server gave back to a `RewardResult`: the one place where it is checked.

This happens in the grading process. What comes out has the right types, a score of a sane size and texts that are
short and can be stored, whatever came in; what cannot be used raises, which becomes the outcome `error`.

A number is the score; a response is correct when its score is at least 1. A dict has a `score` (or OpenRLHF's
`rewards`), and may have an `outcome` (or verl's `acc`, whether it is correct), `extracted` (or verl's `pred`) and
`detail`; its other numbers become metrics. A list must hold one such value, for it was asked about one response.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from hpt_ray.text import storable
from hpt_ray.types import Outcome, RewardResult

MAX_METRICS = 32  # of one response
MAX_NAME_CHARS = 100
MAX_EXTRACTED_CHARS = 500  # a result stays small whatever the response was
MAX_DETAIL_CHARS = 300
MAX_SIZE = 1e9  # of a score: means and variances of larger ones lose everything else, or are infinite
FIELDS = ("score", "rewards", "outcome", "extracted", "pred", "detail")


def to_result(value: Any) -> RewardResult:
    """Raises TypeError or ValueError with what is wrong."""
    if isinstance(value, RewardResult):
        return _checked(value)
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
    return RewardResult(_sane(score), Outcome.CORRECT if score >= 1 else Outcome.WRONG)


def _checked(result: RewardResult) -> RewardResult:
    score = _number(result.score)
    if score is None:
        raise TypeError(
            f"its score is {reprlib.repr(result.score)}, a {type(result.score).__name__}, and no number"
        )
    if not isinstance(result.metrics, Mapping):
        raise TypeError(f"its metrics are a {type(result.metrics).__name__}, and no dict")
    extracted = _text(result.extracted, MAX_EXTRACTED_CHARS + 1)
    if extracted is not None and len(extracted) > MAX_EXTRACTED_CHARS:
        extracted = extracted[:MAX_EXTRACTED_CHARS] + "…"
    return RewardResult(
        _sane(score),
        _outcome(result.outcome),
        extracted,
        _text(result.detail, MAX_DETAIL_CHARS),
        _metrics(result.metrics),
    )


def _from_mapping(value: Mapping[Any, Any]) -> RewardResult:
    given = next((name for name in ("score", "rewards") if name in value), None)
    if given is None:
        raise ValueError(
            f"it returned a dict without `score`; it has {', '.join(map(str, value)) or 'nothing'}"
        )
    result = to_result(value[given])
    says: dict[float | None, Outcome] = {0.0: Outcome.WRONG, 1.0: Outcome.CORRECT}
    return _checked(
        RewardResult(
            result.score,
            value.get("outcome", says.get(_number(value.get("acc")), result.outcome)),
            value.get("extracted", value.get("pred")),
            value.get("detail"),
            {name: x for name, x in value.items() if name not in FIELDS},
        )
    )


def _outcome(value: Any) -> Outcome:
    try:
        return Outcome(value)
    except ValueError:
        raise ValueError(f"its outcome is {reprlib.repr(value)}; there are {', '.join(Outcome)}") from None


def _text(value: Any, max_chars: int) -> str | None:
    return None if value is None else storable(str(value)[:max_chars])[:max_chars]


def _metrics(values: Mapping[Any, Any]) -> dict[str, float]:
    """Those that are numbers of a sane size, by names that can be part of a metric's."""
    numbers = {
        storable(str(name)[:MAX_NAME_CHARS]).replace("/", "_"): _number(x) for name, x in values.items()
    }
    sane = {name: x for name, x in numbers.items() if x is not None and abs(x) <= MAX_SIZE}
    return dict(list(sane.items())[:MAX_METRICS])


def _number(value: Any) -> float | None:
    """A number or truth value of Python, numpy or torch; None for anything else."""
    if hasattr(value, "item") and not getattr(value, "ndim", None):
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _sane(score: float) -> float:
    if not abs(score) <= MAX_SIZE:  # NaN is not, either
        raise ValueError(f"the reward function's score is {score:g}; it must lie within ±{MAX_SIZE:g}")
    return score
