r"""One spelling for what is written in many: `normalise` takes an answer's typography away, and no meaning.

In: what stands in a box, in LaTeX, with Unicode signs, or as a program prints it. Out: LaTeX that the stages in
`math.py` compare and math-verify reads. Nothing here decides whether two answers are equal.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_SIGNS = {
    "−–—‒﹣": "-", "·⋅∙": r"\cdot ", "×✕": r"\times ", "÷": r"\div ", "⁄∕": "/", "±": r"\pm ", "∓": r"\mp ",
    "≤⩽≦": r"\leq ", "≥⩾≧": r"\geq ", "≠": r"\neq ", "≈≅": r"\approx ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅⌀": r"\emptyset ", "°": r"^\circ ", "′’": "'", "″": "''",
    "…": r"\ldots ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "∨": r"\lor ", "∧": r"\land ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "∠": r"\angle ", "、": ",", "€£¥¢": "", "\u200b\u200c\u200d\u2060\ufeff": "",
}  # fmt: skip
_GREEK = {
    code: "\\" + (word.lower() if "SMALL" in name else word.capitalize()) + " "
    for code in range(0x391, 0x3CA)
    if (name := unicodedata.name(chr(code), "")).count(" ") == 3
    for word in [name.split()[-1].replace("LAMDA", "LAMBDA")]
}
_TABLE = _GREEK | {ord(sign): new for signs, new in _SIGNS.items() for sign in signs}
_SUPERSCRIPTS, _SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢ"
_PLAIN = str.maketrans(_SUPERSCRIPTS + _SUBSCRIPTS, "0123456789+-=()ni" * 2)
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = re.compile(f"[{_SUBSCRIPTS}]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(
    r"([√∛∜])\s*(?:\(((?:[^()]|\([^()]*\))*)\)|\{((?:[^{}]|\{[^{}]*\})*)\}|"
    r"(\\[a-zA-Z]+(?:\{[^{}]*\})*|\d+(?:\.\d+)?|[a-zA-Z]))"
)
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

_INTEGER = re.compile(r"-?\d+")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
THOUSANDS = re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}|\\,)(?=\d{3}(?!\d))")  # 10,\!080, 10{,}080 and 10\,080
_E_NOTATION = re.compile(r"(?<![\w.}\\])(\d{1,15}(?:\.\d{1,15})?)[eE]\+?(-?\d{1,3})(?![\w.])")
_EULER = re.compile(r"(?<![a-zA-Z\\])e(?![a-zA-Z])")
# What stands behind a backslash → what is written instead of both.
_COMMAND = re.compile(r"\\([a-zA-Z]+|[\\!,;: $%])")
_COMMANDS = {
    word: new
    for words, new in {
        "left right displaystyle big bigl bigr Big Bigl Bigr small large Large LARGE huge underline $": "",
        "langle": "(",
        "rangle": ")",
        "degree": r"^\circ ",
        "! , ; :": " ",
        "%": "%",
        "dfrac tfrac cfrac": r"\frac",
        "ge geq geqslant geqq": r"\geq ",
        "le leq leqslant leqq": r"\leq ",
        "ne": r"\neq ",
        "gt": ">",
        "lt": "<",
        "varnothing O": r"\emptyset ",
        "ldots cdots dots dotsb dotsc dotsm": r"\ldots ",
        "textrm textbf textit textnormal mbox": r"\text",
        "Bbb": r"\mathbb",
        **{letter: rf"\mathbb{{{letter}}}" for letter in "RNZQC"},
    }.items()
    for word in words.split()
} | {" ": " "}
_SPELLED = {
    ">=": r"\geq ", "<=": r"\leq ", "!=": r"\neq ", "...": r"\ldots ", "**": "^", "$": "", "~": " ",
    r"\qquad": " ", r"\quad": " ", "{bmatrix}": "{pmatrix}",
}  # fmt: skip
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_DEGREES = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?\^ ?\{? ?\\circ ?\}?")
_UNIT = (  # no second answer: `5\text{ or 6}`
    r"(?<=[\d}]) ?\\%s\{(?! ?[aApP]\.? ?[mM]\.? ?\}| ?\([A-J]\)|[^{}]*\b(?:and|or|not)\b)(?=[^{}]*[a-zA-Z])"
    r"(?:[^{}\d]|(?<=[\^a-z])\d)*\}(?:\^\{?\d\}?)?$"
)
_POWERS_OF_TEN = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_POWER_OF_TEN = rf"(?<=\d) ?(?:\\text\{{ ?)?({'|'.join(_POWERS_OF_TEN)})(?![a-z]) ?([^{{}}]*)\}}?$"


def _as_fraction(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` is `\frac{15}{90}`."""
    before, repeated = (match[1] or "") + match[2], match[3]
    above = int(before + repeated) - int(before or 0)
    return f"\\frac{{{above}}}{{{'9' * len(repeated) + '0' * len(match[2])}}}"


def _in_digits(match: re.Match[str]) -> str:
    r"""`2.5 million dollars` is `2.5 \times 10^{6}\text{dollars}`."""
    unit = match[2] and rf"\text{{{match[2]}}}"
    return rf" \times 10^{{{_POWERS_OF_TEN[match[1]]}}}{unit}"


def _without_blanks(match: re.Match[str]) -> str:
    """`12 345` is a number, and `1 2` a list of two."""
    is_one = re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+", match[0])
    return match[0].replace(" ", "" if is_one else ",")


# The rest, with something that must stand in the answer for the pattern to match: most answers need none of them.
_REWRITES: list[tuple[str, re.Pattern[str], Any]] = [
    (needle, re.compile(pattern), new)
    for needle, pattern, new in [
        ("\\frac", r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),  # \frac12
        ("\\circ", r"\^ ?\{?\\circ\}?(?: ?[CF]$)?", ""),
        (" ", r"^[-+]?\d+(?: \d+)+$", _without_blanks),
        ("thousand", _POWER_OF_TEN, _in_digits),
        ("illion", _POWER_OF_TEN, _in_digits),
        ("color", r"\\(?:text)?color ?\{\w+\}", ""),
        ("pi", r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        ("(", r"(?<![a-zA-Z\\])(exp|ln|(?:arc)?(?:sin|cos|tan))(?= ?\()", r"\\\1"),  # log is of no known base
        ("nfinity", r"\\text\{ ?[iI]nfinity ?\}|(?<![a-zA-Z\\])[iI]nfinity(?![a-zA-Z])", r"\\infty "),
        ("\\", r"^\\(text|mathrm)\{ ?([-+]?[\d.,]*\d)(?= ?[a-zA-Z])", r"\2\\\1{"),  # \text{10 cm}
        ("^", r"(?<=[\d}]) ?(?:[ckm]?m|in|ft|yd|mi|units?|inches|feet) ?\^ ?\{?[23]\}?$", ""),  # 10 cm^2
        ("p", r"(?<=[\d}]) ?(?:\\text\{ ?)?(?:percent|percentage|pct) ?\}?$", "%"),
        ("\\{", r"^\\\{ ?\\\}$", r"\\emptyset "),
        ("\\mathbb", r"\\mathbb ?(?:([A-Z])|\{ ?([A-Z]) ?\})", r"\\mathbb{\1\2}"),
        ("{", r"\\(?:mathrm|mathbf|mathit|operatorname)\{ ?([ei]) ?\}", r"\1"),
        ("\\b", r"\\(?:boldsymbol|bm) ?\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1"),
        (".", r"(?<![\w.])(\d{1,30})?\.(\d{0,30})\\(?:overline|bar|dot) ?\{? ?(\d{1,30}) ?\}?", _as_fraction),
        ("/", r"(?<![\w.^/}])(\d+) (\d+) ?/ ?(\d+)(?![\d/.^])", r"\1\\frac{\2}{\3}"),  # 2 1/2
        ("^", r"\^ ?(-\d+)", r"^{\1}"),  # 10^-3
        ("^", r"(?<=\d) ?[xX] ?(?=10 ?\^)", r" \\times "),  # 3 x 10^8
        ("\\", r"^\\(?:approx|sim|simeq|thickapprox)(?![a-zA-Z])", ""),
        ("a", r"^(?:\\text\{)? ?(?:approximately|about) ?\}?", ""),
        ("\\approx", r"^([a-zA-Z](?:_\{?\w+\}?)?) ?\\approx(?![a-zA-Z])", r"\1="),
        (  # 101 (base 2), 101_{\text{base } 2}
            "base",
            r"(?<=[\dA-F]) ?_? ?\{? ?\(?(?:\\(?:text|mathrm)\{)? ?\(? ?(?:in )?base[\s{}-]*(\w+)[\s})]*$",
            r"_{\1}",
        ),
        (  # k\pi, k \in \mathbb{Z}
            "\\in",
            r"(?<=[^\s,;(]) ?[,;]? ?\(? ?(?:\\text\{[a-z, ]{0,20}\} ?)?"
            r"(?<![a-zA-Z\\])[kmn] ?\\in ?(?:\\mathbb\{Z\}|Z) ?\)?$",
            "",
        ),
        ("/", r"(?<=\d) (?:[ckm]?m|mi|miles|ft|feet) ?/ ?(?:s|sec|min|h|hr)(?:\^ ?\{?2\}?)?$", ""),  # 12 m/s
        # A unit at the end, after a number: `5.4 \text{ cents}`, `15\mbox{ cm}^2`, `270/7 \text{ degrees}`.
        ("\\text", _UNIT % "text", ""),
        ("\\mathrm", _UNIT % "mathrm", ""),
    ]
]


def normalise(answer: str) -> str:
    r"""An answer without its typography: `\left( 3,\ \dfrac12 \right)` becomes `( 3, \frac{1}{2} )`.

    Only changes that keep the meaning whatever the prompt asks; blanks are compared away later.
    """
    answer = answer.strip()
    if _INTEGER.fullmatch(answer):  # as most are
        return answer
    if "\\\\" in answer and "\\begin" not in answer:  # a backslash escaped once too often
        answer = _DOUBLED.sub(r"\\", answer)
    if not answer.isascii():
        answer = _in_latex(answer)
    if "," in answer:
        answer = THOUSANDS.sub("", answer)
    if "\\" in answer:
        answer = _COMMAND.sub(lambda command: _COMMANDS.get(command[1], command[0]), answer)
    for sign, word in _SPELLED.items():
        answer = answer.replace(sign, word)
    answer = " ".join(answer.split()).rstrip(" .,;\\")  # one blank at most, for the rules below
    if "\\circ" in answer and _TRIGONOMETRIC.search(answer):  # elsewhere an angle is its number of degrees
        answer = _DEGREES.sub(r"\\frac{\1\\pi}{180}", answer)
    for needle, pattern, new in _REWRITES:
        if needle in answer:
            answer = pattern.sub(new, answer)
    return answer.strip()


def scientific(answer: str, reference: str) -> tuple[str, str]:
    """Both, with `3e8` as a number where it is one: `2e-1` beside `-1+2e` is Euler's number, doubled, less 1."""
    if "e" not in (answer + reference).lower():
        return answer, reference
    spelled = [_E_NOTATION.sub(r"\1 \\times 10^{\2}", text) for text in (answer, reference)]
    if any(_EULER.search(text) for text in spelled):
        return answer, reference
    return spelled[0], spelled[1]


def _in_latex(answer: str) -> str:
    """Unicode's signs of mathematics as LaTeX: `½` is `\\frac{1}{2}`, `√(x²+1)` is `\\sqrt{x^{2}+1}`."""
    answer = _VULGAR.sub(_fraction, answer)
    answer = _RAISED.sub(lambda m: "^{" + m[0].translate(_PLAIN) + "}", answer)
    answer = _LOWERED.sub(lambda m: "_{" + m[0].translate(_PLAIN) + "}", answer)
    answer = unicodedata.normalize("NFKC", answer.translate(_TABLE)).translate(
        _TABLE
    )  # full-width and italic
    for _ in range(4):  # a root in a root
        answer, count = _ROOT.subn(lambda m: f"{_ROOTS[m[1]]}{{{m[2] or m[3] or m[4]}}}", answer)
        if not count:
            break
    return answer


def _fraction(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return f"\\frac{{{above}}}{{{below}}}"
