"""`http:URL`: a reward function behind HTTP.

Sends POST with JSON `{"response": text, "ground_truth": value}` and expects JSON
`{"score": number, "outcome"?: one of the outcomes, "extracted"?: text, "detail"?: text}`. Without an outcome
a response is correct when its score is at least 1. A try that gets no reply in `TRY_TIMEOUT_S`, or a
status of 429 or 5xx, is repeated with growing pauses; other statuses are not. All tries together stand
under `reward.timeout_s`. What remains is the outcome `error` (or `timeout`). Proxy variables of the system
are followed.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

from hpt_ray.reward.functions.custom import to_result
from hpt_ray.types import Outcome, RewardResult

NUM_TRIES = 4
TRY_TIMEOUT_S = 2.0
FIRST_PAUSE_S = 0.1
MAX_REPLY_BYTES = 1_000_000
MAX_DETAIL_CHARS = 300


def check_argument(url: str) -> None:
    parts = urlparse(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"`{url}` is no address that begins with http:// or https://")


def make(url: str) -> Callable[[str, Any], RewardResult]:
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
