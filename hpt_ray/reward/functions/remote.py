"""The user's server as a reward function: `http:URL`, or just the URL.

Sends POST with JSON `{"response", "ground_truth", "prompt", "data_source", "extra_info"}` and expects what a Python
reward function may return, as JSON: a number, or `{"score": number, …}` (see `returned.py`). Where nobody answers, or
with a status of 429 or 5xx, a request is repeated with growing pauses; with other statuses it is not. A judge may
think as long as it likes: the limit is `reward.timeout_s`, for all tries together. What remains is the outcome `error`
or `timeout`. Proxy variables of the system are followed.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

from hpt_ray.reward.functions.returned import to_result
from hpt_ray.reward.functions.row import NO_ROW, Row
from hpt_ray.types import RewardResult

NUM_TRIES = 4
FIRST_PAUSE_S = 0.1
MAX_REPLY_BYTES = 1_000_000
MAX_SHOWN = 100


def check_http(url: str) -> None:
    parts = urlparse(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"`{url}` is no address that begins with http:// or https://")


def make_http(url: str) -> Callable[..., RewardResult]:
    def grade(response: str, ground_truth: Any, row: Row = NO_ROW) -> RewardResult:
        request = {
            "response": response,
            "ground_truth": ground_truth,
            "prompt": row.prompt,
            "data_source": row.data_source,
            "extra_info": row.extra,
        }
        reply = _post(url, json.dumps(request, default=_plain).encode())
        try:
            return to_result(json.loads(reply))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{url} answered no JSON: {reply[:MAX_SHOWN].decode(errors='replace')}"
            ) from error

    return grade


def _plain(value: Any) -> Any:
    """What JSON has no form for: an array as its list, anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    failure: Exception | None = None
    for attempt in range(NUM_TRIES):
        if attempt:
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.read(MAX_REPLY_BYTES)
        except urllib.error.HTTPError as error:
            if error.code != 429 and error.code < 500:
                raise
            failure = error
        except OSError as error:  # refused, unreachable, reset
            failure = error
    raise ConnectionError(f"{url}: no answer in {NUM_TRIES} tries ({failure})")
