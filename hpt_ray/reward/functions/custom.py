"""Reward functions of the user: `python:FILE:FUNCTION` and `http:URL`, in the same killable processes as the others.

`python`: the function takes `(response: str, ground_truth)`, may be sync or async, and returns a `RewardResult`, a
truth value, or a number as the score; a response is correct when its score is at least 1. What it raises becomes
the outcome `error`. The file is loaded once a process; modules beside it can be imported.

`http`: sends POST with JSON `{"response": text, "ground_truth": value}` and expects JSON `{"score": number,
"outcome"?: one of the outcomes, "extracted"?: text, "detail"?: text}`. Without an outcome the score decides, as
above. A try that gets no reply in `TRY_TIMEOUT_S`, or a status of 429 or 5xx, is repeated with growing pauses;
other statuses are not. All tries together stand under `reward.timeout_s`. What remains is the outcome `error` (or
`timeout`). Proxy variables of the system are followed.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import json
import math
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hpt_ray.types import Outcome, RewardResult

NUM_TRIES = 4
TRY_TIMEOUT_S = 2.0
FIRST_PAUSE_S = 0.1
MAX_REPLY_BYTES = 1_000_000
MAX_DETAIL_CHARS = 300


def check_python(argument: str) -> None:
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


def make_python(argument: str) -> Callable[[str, Any], RewardResult]:
    file, _, name = argument.rpartition(":")
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None  # `check_python` has read the file
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


def check_http(url: str) -> None:
    parts = urlparse(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"`{url}` is no address that begins with http:// or https://")


def make_http(url: str) -> Callable[[str, Any], RewardResult]:
    def grade(response: str, ground_truth: Any) -> RewardResult:
        truth = ground_truth.tolist() if hasattr(ground_truth, "tolist") else ground_truth
        body = json.dumps({"response": response, "ground_truth": truth}).encode()
        return _read(json.loads(_post(url, body)))

    return grade


def _post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    failure: Exception | None = None
    for attempt in range(NUM_TRIES):
        if attempt:
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(request, timeout=TRY_TIMEOUT_S) as reply:
                return reply.read(MAX_REPLY_BYTES)
        except urllib.error.HTTPError as error:
            if error.code != 429 and error.code < 500:
                raise
            failure = error
        except OSError as error:  # refused, unreachable, timed out, reset
            failure = error
    raise ConnectionError(f"{url}: no answer in {NUM_TRIES} tries ({failure})")


def _read(reply: Any) -> RewardResult:
    if not isinstance(reply, dict) or "score" not in reply:
        raise ValueError("the reply is no JSON object with a `score`")
    result = to_result(reply["score"])
    outcome = Outcome(reply["outcome"]) if "outcome" in reply else result.outcome
    extracted, detail = reply.get("extracted"), reply.get("detail")
    return RewardResult(
        result.score,
        outcome,
        None if extracted is None else str(extracted),
        None if detail is None else str(detail)[:MAX_DETAIL_CHARS],
    )
