"""`python:FILE:FUNCTION`: a user's own reward function, run in the same killable processes as the others.

The function takes `(response: str, ground_truth)`, may be sync or async, and returns a `RewardResult`, a truth
value, or a number as the score; a response is correct when its score is at least 1. What it raises
becomes the outcome `error`. The file is loaded once a process; modules beside it can be imported.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpt_ray.types import Outcome, RewardResult


def check_argument(argument: str) -> None:
    """Reads the file without running it."""
    file, _, function = argument.rpartition(":")
    if not file or not function:
        raise ValueError("a file and a function are needed")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {path.resolve()}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"the file cannot be read as Python ({error})") from error
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    if function not in names:
        raise ValueError(f"{path} has no function {function} (it has: {', '.join(sorted(names)) or 'none'})")


def make(argument: str) -> Callable[[str, Any], RewardResult]:
    file, _, name = argument.rpartition(":")
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None  # `check_argument` has read the file
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    module_spec.loader.exec_module(module)
    function = getattr(module, name)

    def grade(response: str, ground_truth: Any) -> RewardResult:
        result = function(response, ground_truth)
        return to_result(asyncio.run(result) if inspect.iscoroutine(result) else result)

    return grade


def to_result(result: Any) -> RewardResult:
    """A RewardResult from what a user's reward function returned. Raises TypeError or ValueError with what is wrong."""
    if isinstance(result, RewardResult):
        return result
    if not isinstance(result, (bool, int, float)):
        raise TypeError(
            f"a reward function returns a RewardResult, a bool or a number, not {type(result).__name__}"
        )
    score = float(result)
    if not math.isfinite(score):
        raise ValueError(f"the reward function's score is {score}")
    return RewardResult(score, Outcome.CORRECT if score >= 1 else Outcome.WRONG)
