r"""Sets of real numbers in two notations: `x > 2` is `(2, \infty)`, `x<1 or x>2` is `(-\infty,1) \cup (2,\infty)`.

Read are relations of one variable with bounds (`2 < x \le 5`, `x \ne 3`), joined by and, or, commas; `x \in S`;
`\{x \mid …\}`; sets as math-verify reads them; and a few words ("all real numbers"). What must be solved first
(`x^2 < 4`) is not.
"""

from __future__ import annotations

import re
from typing import Any

from hpt_ray.reward.functions.equivalence import equivalent, parse
from hpt_ray.reward.functions.forms import Decision, elements

_RELATION = re.compile(r"\\(leq|geq|neq)(?![a-zA-Z])|([<>])")
_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?|\\(?!infty|pi|emptyset)[a-zA-Z]+")
_MEMBER = re.compile(r"(.+?)\\in(?![a-zA-Z])(.+)", re.DOTALL)
_BUILDER = re.compile(
    r"\\\{\s*(?P<variable>[a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\})?\s*(?:\\mid|\\vert|\\colon|[:|])(?P<condition>.+)\\\}",
    re.DOTALL,
)
_OR = re.compile(
    r"\\text\{\s*,?\s*or\s*\}|\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])|\\cup|(?<![a-zA-Z\\])or(?![a-zA-Z])"
)
_AND = re.compile(
    r",?\s*(?:\\text\{\s*,?\s*(?:and|but)\s*\}|\\land(?![a-zA-Z])|\\wedge(?![a-zA-Z])|\\cap"
    r"|(?<![a-zA-Z\\])and(?![a-zA-Z]))"
)
_HINT = re.compile(r"[<>]|\\(?:in|leq|geq|neq|cup|mathbb)(?![a-zA-Z])|real|solution|empty", re.IGNORECASE)
_WORDS = {
    r"(?:all|any)real(?:number|value)?s?|theset(?:of)?(?:all)?realnumbers|allreals": r"\mathbb{R}",
    r"no(?:real)?solutions?|(?:the)?emptyset|therearenosolutions": r"\emptyset",
}


def decide(answer: str, reference: str) -> Decision | None:
    """The decision where at least one side is written as relations and both are sets; else None."""
    if not (_HINT.search(answer) or _HINT.search(reference)):
        return None
    try:
        right_side, given_side = _read(reference), _read(answer)
        if right_side is None or given_side is None:
            return None
        (name, right), (other, given) = right_side, given_side
        if name and other and name != other:
            return None  # x > y and y < x
        equal = right == given or equivalent([right], [given])
    except (TypeError, ValueError, NotImplementedError, AttributeError):  # bounds that sympy cannot order
        return None
    return Decision(equal, "set of numbers") if equal or name or other else None


def _read(text: str) -> tuple[str, Any] | None:
    """The variable ("" if none is named) and the set; None: not a set of numbers."""
    if match := _BUILDER.fullmatch(text.strip()):
        text = match["condition"]
        name = match["variable"]
        inner = _relations(text)
        return inner if inner and inner[0] == name else None
    if _RELATION.search(text):
        return _relations(text)
    if (match := _MEMBER.fullmatch(text)) and _VARIABLE.fullmatch(match[1].strip()):
        found = _set(match[2])
        return None if found is None else (match[1].strip(), found)
    found = _set(text)
    return None if found is None else ("", found)


def _set(text: str) -> Any:
    from sympy import FiniteSet, Interval, Set, Union

    plain = re.sub(r"\\text|[\s{}]", "", text).lower()
    for words, latex in _WORDS.items():
        if re.fullmatch(words, plain):
            text = latex
    value = (parse(text) or [None])[0]
    if isinstance(value, FiniteSet) and value.args and all(isinstance(part, Interval) for part in value.args):
        return Union(*value.args)  # increasing on (1,2) and (3,4)
    return value.doit() if isinstance(value, Set) else None


def _relations(text: str) -> tuple[str, Any] | None:
    """The set that relations describe: `or` unites, `and` and commas intersect, commas unite what is disjoint."""
    from sympy import Intersection, Union

    names: set[str] = set()
    united = []
    for alternative in _OR.split(text):
        sets: list[Any] = []
        for part in _AND.split(alternative):
            listed: list[Any] = []
            for piece in elements(part):
                found = _relation(piece, names, after_unequal=bool(listed) and r"\neq" in part)
                if found is None:
                    return None
                listed.append(found)
            both = Intersection(*listed)
            sets.append(Union(*listed) if len(listed) > 1 and both.is_empty else both)
        united.append(Intersection(*sets))
    return (names.pop(), Union(*united)) if len(names) == 1 else None


def _relation(text: str, names: set[str], *, after_unequal: bool) -> Any:
    """One of them: `2 < x`, `2 < x \\leq 5`, `x = 1`, `x \\in S`, the 3 in `x \\neq 2, 3`. Adds to `names`."""
    signs = [match[1] or match[2] for match in _RELATION.finditer(text)]
    terms = [term.strip() for term in re.split(r"\\(?:leq|geq|neq)(?![a-zA-Z])|[<>]", text)]
    known = [bool(_VARIABLE.fullmatch(term)) for term in terms]
    if len(signs) == 2 and known[1]:  # 2 < x < 5
        names.add(terms[1])
        return _half(_FLIPPED[signs[0]], terms[0]).intersect(_half(signs[1], terms[2]))
    if len(signs) == 1 and any(known):
        names.add(terms[0] if known[0] else terms[1])
        return _half(signs[0], terms[1]) if known[0] else _half(_FLIPPED[signs[0]], terms[0])
    if signs:
        return None
    if (match := _MEMBER.fullmatch(text)) and _VARIABLE.fullmatch(match[1].strip()):
        names.add(match[1].strip())
        return _set(match[2])
    name, sign, value = (part.strip() for part in text.partition("="))
    if sign and _VARIABLE.fullmatch(name):
        names.add(name)
        return _half("=", value)
    return _half("neq", text) if after_unequal and not sign else None


_FLIPPED = {"<": ">", ">": "<", "leq": "geq", "geq": "leq", "neq": "neq"}


def _half(sign: str, bound: str) -> Any:
    """All numbers in this relation to the bound. Raises ValueError where it is no number."""
    from sympy import Expr, FiniteSet, Interval, Reals, oo

    value = (parse(bound) or [None])[0]
    if not isinstance(value, Expr):
        raise ValueError(f"not a bound: {bound}")
    match sign:
        case "<" | "leq":
            return Interval(-oo, value, left_open=True, right_open=sign == "<")
        case ">" | "geq":
            return Interval(value, oo, left_open=sign == ">", right_open=True)
        case "neq":
            return Reals - FiniteSet(value)
    return FiniteSet(value)
