r"""The unit of a number, where it is a known one: of `35\text{ cm}`, of `5 meters per second`.

What an answer lacks is not asked for: `35` is `35 cm`. But `35 m` is not, and neither is `35 cm²`.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_CHARS = 200  # of an answer that is one number

# One unit between bars, with its spellings; an s at the end is a plural's.
_SPELLINGS = """
mm millimeter millimetre | cm centimeter centimetre | m meter metre | km kilometer kilometre
in inch inche | ft foot feet | yd yard | mi mile | mg milligram | g gram | kg kilogram | lb pound | oz ounce
ml milliliter millilitre | l liter litre | gal gallon | s sec second | min minute | h hr hour | day | week | month
yr year | dollar | cent | euro | sterling | degree | rad radian | km/h kph | mi/h mph | c celsius | f fahrenheit
k kelvin | n newton | j joule | kj kilojoule | w watt | kw kilowatt | v volt | amp ampere | pa pascal | kpa kilopascal
hz hertz
"""
_UNITS = {
    name: names.split()[0] for names in re.split(r"[|\n]", _SPELLINGS.strip()) for name in names.split()
}
_CURRENCIES = {r"\$": "dollars", "¢": "cents", "€": "euros", "£": "sterling"}
_TYPOGRAPHY = re.compile(
    r"\\(?:text|mathrm|mbox|rm|textrm)(?![a-z])|\\[ ,;!()]|\^ ?\{?\\circ(?![a-z])|[{}$~°]"
)
_NUMBER = re.compile(
    r"(?:[^a-z]|\\?(?:[dt]?frac|sqrt|pi|times|cdot|approx|about)(?![a-z]))*\d(?:[^a-z]|\\pi)*"
)
_POWER = r"(?: ?\^? ?([23²³])| (squared|cubed))?"
_UNIT = re.compile(
    rf"(.*?)(?:(square|sq|cubic|cu)\.? |degrees? )?([a-z]+)\.?{_POWER}(?: ?(?:/|per) ?([a-z]+){_POWER})?"
)
_EXPONENTS = dict.fromkeys(("2", "²", "square", "sq", "squared"), 2) | dict.fromkeys(
    ("3", "³", "cubic", "cu", "cubed"), 3
)


@lru_cache(maxsize=4096)
def unit_of(answer: str) -> tuple[str, int, str, int] | None:
    """Unit, its power, the unit below it and that one's power; None: the answer is no number with a known unit."""
    if len(answer) > MAX_CHARS:
        return None
    for sign, word in _CURRENCIES.items():
        if sign in answer:
            answer = f"{answer.replace(sign, '')} {word}"
    plain = " ".join(_TYPOGRAPHY.sub(" ", answer).lower().rpartition("=")[2].split()).rstrip(" .")
    found = _UNIT.fullmatch(plain)
    if found is None or not _NUMBER.fullmatch(found[1]):
        return None
    above, below = _known(found[3]), _known(found[6] or "")
    if above is None or below is None:
        return None
    if "/" in above:
        above, _, below = above.partition("/")
    power = _EXPONENTS.get(found[2] or found[4] or found[5] or "", 1)
    return above, power, below, _EXPONENTS.get(found[7] or found[8] or "", 1)


def with_unit(number: str, after: str) -> str:
    """The number with its unit in a text that goes on `after` it: `35 m` of `35 m long`, but not `35 in all`."""
    sentence = (after.splitlines() or [""])[0].partition(". ")[0]
    word = re.match(r"\W*(?!in\b)\S+", sentence)
    spelled = [f"{number} {text}" for text in (sentence, word[0] if word else "")]
    return next(filter(unit_of, spelled), number)


def _known(word: str) -> str | None:
    return "" if not word else _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))


def agree(answer: str, reference: str) -> bool:
    """Whether both have the same unit, or one has none."""
    asked = unit_of(reference)
    return asked is None or unit_of(answer) in (None, asked)
