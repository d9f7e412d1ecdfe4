r"""Answers whose form is their meaning, which algebra would overlook: `math` decides these before math-verify.

A number in another base (`101_2` is not 101), a time of day (12:00 is not a ratio), a date (2024-01-05 is not 2018), a
ratio of three and more, a derivative's prime, a number in a text, and an answer that only repeats the question (an
integral, a sum, a limit, a derivative).
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Decision(NamedTuple):
    """Whether an answer equals a reference, and what kind of comparison says so."""

    equal: bool
    stage: str


def decide(answer: str, reference: str) -> Decision | None:
    """The decision on two normalised answers that are spelled differently; None: their form does not decide."""
    for stage, compare in _COMPARISONS.items():
        equal = compare(answer, reference)
        if equal is not None:
            return Decision(equal, stage)
    return None


def elements(answer: str, separators: str = ",;") -> list[str]:
    r"""What stands between the commas outside all brackets. `(1,2), 3` is two elements.

    `and` and `or` part elements as well.
    """
    parts, depth, start = [], 0, 0
    text = _CONJUNCTION.sub(separators[0], answer)
    for position, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign in separators and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def both_signs(answer: str) -> str:
    r"""`\pm` spelled out, as math-verify reads only some of them: `1 \pm \sqrt{5}` is two elements."""
    if "\\pm" not in answer and "\\mp" not in answer:
        return answer
    spelled = []
    for element in elements(answer):
        if element.startswith("\\{"):  # read as it is
            spelled.append(element)
            continue
        for plus, minus in ("+-", "-+"):
            signed = re.sub(r"\\mp(?![a-zA-Z])", minus, re.sub(r"\\pm(?![a-zA-Z])", plus, element))
            spelled.append(re.sub(r"(^|[({\[,=])\s*\+", r"\1", signed))
    return ", ".join(spelled)


_CONJUNCTION = re.compile(
    r",?\s*\\(?:text|mathrm)\{\s*,?\s*(?:and|or)\s*\}|,?(?<![a-zA-Z\\])\s*(?:and|or)(?![a-zA-Z])"
)

# -- numbers in another base -----------------------------------------------------------------------

NUMBER_WORDS = {
    word: base
    for base, word in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 2
    )
} | {"sixteen": 16}
_NUMERAL = re.compile(r"\(?(-?[0-9A-Za-z.]+)\)?_\{?\(?(?:\\(?:text|mathrm)\{)?([0-9]+|[a-z]+)\}*\)?\}*")


def _numeral(text: str) -> tuple[str, int] | None:
    """`(1A)_{16}` → ("1a", 16)."""
    match = _NUMERAL.fullmatch("".join(text.split()))
    if match is None:
        return None
    digits, base = (
        match[1].lower(),
        NUMBER_WORDS.get(match[2]) or (int(match[2]) if match[2].isdigit() else 0),
    )
    if not 2 <= base <= 36 or not (base == 16 or re.search(r"\d", digits)):
        return None  # the name of a variable, such as a_{11}
    if any(sign.isalnum() and int(sign, 36) >= base for sign in digits):
        return None
    return None if base == 10 else (digits.lstrip("0") or "0", base)


def _numerals(answer: str, reference: str) -> bool | None:
    if "_" not in answer + reference:
        return None
    sides = []
    for text in (answer, reference):
        text = re.sub(r"^\{(.*)\}$", r"\1", text)  # a group, which means nothing
        text = re.sub(r"^[a-zA-Z](?:_\w)?\s*=\s*", "", text)
        sides.append([_numeral(part) or "".join(part.split()).lower() for part in elements(text)])
    if not any(isinstance(part, tuple) for side in sides for part in side):
        return None
    return sorted(map(str, sides[0])) == sorted(map(str, sides[1]))


# -- times of day, dates, and ratios -----------------------------------------------------------------

_TIME = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?(?:([ap])\.?m\.?)?", re.IGNORECASE)
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4}")
_RATIO = re.compile(r"\d{1,15}(?::\d{1,15}){2,}")


def _times(answer: str, reference: str) -> bool | None:
    sides = []
    for text in (answer, reference):
        match = _TIME.fullmatch(re.sub(r"\\(?:text|mathrm)\s*\{|[\s{}\\~]", "", text))
        if match is None or int(match[1]) > 24:
            return None
        sides.append((int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or "").lower()))
    if not (sides[0][3] or sides[1][3]) and not (":" in answer and ":" in reference):
        return None
    (hour, *rest, half), (other, *others, other_half) = sides
    if half and other_half:
        return (hour % 12, rest, half) == (other % 12, others, other_half)
    if half or other_half:  # 15:30 and 3:30 are 3:30 PM
        named, plain, named_half = (hour, other, half) if half else (other, hour, other_half)
        return rest == others and plain in (named, named % 12 + 12 * (named_half == "p"))
    return (hour, rest) == (other, others)


def _dates(answer: str, reference: str) -> bool | None:
    if not _DATE.fullmatch(reference):
        return None
    return bool(_DATE.fullmatch(answer)) and _numbers(answer) == _numbers(reference)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _ratios(answer: str, reference: str) -> bool | None:
    if ":" not in answer:
        return None
    texts = ["".join(text.split()) for text in (answer, reference)]
    if not all(_RATIO.fullmatch(text) for text in texts):
        return None
    left, right = map(_numbers, texts)
    return len(left) == len(right) and all(
        a * right[0] == b * left[0] for a, b in zip(left, right, strict=True)
    )


# -- what algebra would compute or drop ------------------------------------------------------------

_OPERATOR = re.compile(
    r"\\(i{0,2}int|oint|sum|prod|coprod|lim|limsup|liminf|bigcup|bigcap|ldots)(?![a-zA-Z])"
    r"|\\frac\s*\{\s*(d|\\partial)(?![a-zA-Z]{2})(?:[^{}]|\{[^{}]*\})*\}\s*\{\s*(?:d|\\partial)\s*[a-zA-Z][^{}]*\}"
)
_ASIDE = re.compile(r"\\(?:text|mathrm)\{[^{}]*(?:\bnot\b|\bor\b[^{}\w]*[a-zA-Z]|(?<![\^a-zA-Z])\d)")
_DERIVATIVE = re.compile(r"(?<![a-zA-Z])[a-zA-Z]\s*(?:'+|\^\s*\{?\s*(?:\\prime\s*)+\}?)")


def _unevaluated(answer: str, reference: str) -> bool | None:
    asked, given = _operators(reference), _operators(answer)
    if not given or (given == asked and "ldots" not in given):
        return None
    return False


def _operators(text: str) -> set[str]:
    r"""The operations that a value still waits for: right of the last `=`, since `\frac{dy}{dx} = 2x` is a value."""
    if "\\" not in text:
        return set()
    bare = re.sub(r"_\s*\{[^{}]*\}|(?<=\d)\s*\\ldots\s*$", "", text)  # \sum_{k=1}; 0.333\ldots
    return {match[1] or match[2] for match in _OPERATOR.finditer(bare.rpartition("=")[2])}


def _asides(answer: str, reference: str) -> bool | None:
    r"""`5\text{ (or 6)}` is not 5: algebra overlooks texts."""
    return False if _ASIDE.search(answer) and not _ASIDE.search(reference) else None


def _primes(answer: str, reference: str) -> bool | None:
    if "'" not in answer + reference and "prime" not in answer + reference:
        return None
    return None if len(_DERIVATIVE.findall(answer)) == len(_DERIVATIVE.findall(reference)) else False


_COMPARISONS = {
    "number base": _numerals,
    "time of day": _times,
    "ratio": _ratios,
    "date": _dates,
    "unevaluated": _unevaluated,
    "derivative": _primes,
    "aside": _asides,
}
