"""math-verify (sympy) behind three functions. It is imported where `math` is made, not before.

Nothing here has a time limit of its own: the pool kills a grading process that takes too long.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

MAX_TINY = 1e-3  # below it a number's first three digits count, and not its decimal places


def load() -> None:
    """Import now, so that it does not count within the first answer's time limit."""
    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that our pool keeps the time


def parse(latex: str) -> list[Any]:
    """What math-verify reads in LaTeX: an expression, its text, or both. Without an expression it is no use."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as read

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return read(f"\\boxed{{{latex}}}", config, parsing_timeout=None)  # type: ignore[arg-type]


@lru_cache(maxsize=256)  # the n rollouts of a prompt share its reference
def parse_reference(latex: str) -> list[Any]:
    return parse(latex)


def parse_end(text: str) -> list[Any]:
    """What math-verify takes for the answer in running text."""
    from math_verify import parse as read

    return read(text, parsing_timeout=None)  # type: ignore[arg-type]


def equivalent(reference: list[Any], answer: list[Any]) -> bool:
    """Whether two parsed answers are equal. Raises what sympy raises on pairs it cannot compare."""
    from math_verify import verify
    from sympy import Basic, I, Symbol, exp

    i = Symbol("i", real=False)  # as math-verify reads it
    if any(
        i in power.free_symbols
        for value in (*reference, *answer)
        if isinstance(value, Basic)
        for power in value.atoms(exp)
    ):
        reference, answer = (
            [value.subs(i, I) if isinstance(value, Basic) else value for value in side]
            for side in (reference, answer)
        )
    equal = verify(reference, answer, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True)
    return equal and not _tiny_and_apart(reference[0], answer[0])


def _tiny_and_apart(reference: Any, answer: Any) -> bool:
    """Whether both are numbers that only six decimal places make equal: of 1.6e-19 and 6.6e-34 they leave 0."""
    from sympy import Expr

    values = [v.doit().evalf() for v in (reference, answer) if isinstance(v, Expr) and v.is_number]
    least = min(map(abs, values), default=1.0)
    return len(values) == 2 and bool(least < MAX_TINY and abs(values[0] - values[1]) > MAX_TINY * least)
