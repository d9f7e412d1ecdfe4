"""The user's server as a reward function: `http:URL`, or just the URL.

Sends POST with JSON `{"response", "ground_truth", "prompt", "data_source", "extra_info"}` and the headers of
`reward.headers`, and expects what a Python reward function may return, as JSON: a number, or `{"score": number, …}`
(see `returned.py`). Where nobody answers, or with a status of 429 or 5xx, a request is repeated with growing pauses;
with other statuses it is not, and a redirect is not followed: it would take headers and responses to another server. A
judge may think as long as it likes: the limit is `reward.timeout_s`, for all tries together. What remains is the
outcome `error` or `timeout`, which names the address without what may be secret in it. Proxy variables of the system
are followed.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from hpt_ray.reward.functions.returned import to_result
from hpt_ray.reward.functions.row import NO_ROW, Row
from hpt_ray.types import RewardResult

NUM_TRIES = 4
FIRST_PAUSE_S = 0.1
MAX_REPLY_BYTES = 1_000_000
MAX_SHOWN = 100


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The answer stays the redirect, an `HTTPError`."""


_opener = urllib.request.build_opener(_NoRedirects)


def check_http(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("it is no address that begins with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("user and password of an address are not sent: set `reward.headers` instead")


def make_http(url: str, headers: Mapping[str, str], shown: str) -> Callable[..., RewardResult]:
    """`shown` stands for the address in messages."""

    def grade(response: str, ground_truth: Any, row: Row = NO_ROW) -> RewardResult:
        request = {
            "response": response,
            "ground_truth": ground_truth,
            "prompt": row.prompt,
            "data_source": row.data_source,
            "extra_info": row.extra,
        }
        body = json.dumps(request, default=_plain).encode()
        reply = _post(
            urllib.request.Request(url, body, {"Content-Type": "application/json", **headers}), shown
        )
        try:
            return to_result(json.loads(reply))
        except json.JSONDecodeError as error:
            said = reply[:MAX_SHOWN].decode(errors="replace")
            raise ValueError(f"{shown} answered no JSON: {said}") from error

    return grade


def _plain(value: Any) -> Any:
    """What JSON has no form for: an array as its list, anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _post(request: urllib.request.Request, shown: str) -> bytes:
    failure: Exception | None = None
    for attempt in range(NUM_TRIES):
        if attempt:
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            with _opener.open(request) as reply:
                return reply.read(MAX_REPLY_BYTES)
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                raise ValueError(
                    f"{shown} redirects (status {error.code}), which is not followed: name the address itself"
                ) from error
            if error.code != 429 and error.code < 500:
                raise
            failure = error
        except OSError as error:  # refused, unreachable, reset
            failure = error
    raise ConnectionError(f"{shown}: no answer in {NUM_TRIES} tries ({failure})")
