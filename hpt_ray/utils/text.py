"""Texts that nobody of ours wrote, as a terminal may show them and a file can hold them."""

from __future__ import annotations

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_FOREIGN = [0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)]
_VISIBLE = _CONTROLS | dict.fromkeys(_FOREIGN, "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    r"""`text` with a visible sign for what would steer a terminal or turn the direction of writing.

    Example: `printable("\x1b[2J") == "␛[2J"`. Tabs and line ends stay.
    """
    return text.translate(_VISIBLE)


def storable(text: str) -> str:
    r"""`text` with lone surrogates, which UTF-8 has no bytes for, written out.

    Example: `storable("a\ud800") == "a\\ud800"`.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
