"""Texts that nobody of ours wrote, as a terminal, a log or a file can take them; and texts without their secrets."""

from __future__ import annotations

import re
from typing import TextIO

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_FOREIGN = [0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)]
_VISIBLE = _CONTROLS | dict.fromkeys(_FOREIGN, "\N{REPLACEMENT CHARACTER}")
_ADDRESS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s/?#@'\"]*@)?(?P<path>[^\s?#'\"]*)(?P<query>\?[^\s#'\"]*)?",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    r"""`text` with a visible sign for what would steer a terminal or turn the direction of writing.

    Example: `printable("\x1b[2J") == "␛[2J"`. Tabs and line ends stay.
    """
    return text.translate(_VISIBLE)


def redacted(text: str) -> str:
    """`text` whose addresses have neither user nor query, where passwords and keys stand.

    Example: `redacted("s3://me:key@host/a?token=b")` is `s3://…@host/a?…`.
    """

    def without(address: re.Match[str]) -> str:
        return (
            address["scheme"] + "…@" * bool(address["user"]) + address["path"] + "?…" * bool(address["query"])
        )

    return _ADDRESS.sub(without, text)


def storable(text: str) -> str:
    r"""`text` with lone surrogates, which UTF-8 has no bytes for, written out.

    Example: `storable("a\ud800") == "a\\ud800"`.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class PrintableStream:
    """A text stream in the place of `sys.stdout` or `sys.stderr` that writes `printable` texts."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
