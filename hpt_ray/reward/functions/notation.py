r"""One spelling for what is written in many: `normalise` takes an answer's typography away, and no meaning.

In: what stands in a box, in LaTeX, with Unicode signs, or as a program prints it. Out: LaTeX that the stages in
`math.py` compare and math-verify reads. Nothing here decides whether two answers are equal.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "−–—‒﹣": "-", "·⋅∙": r"\cdot ", "×✕": r"\times ", "÷": r"\div ", "⁄∕": "/", "±": r"\pm ", "∓": r"\mp ",
    "≤⩽≦": r"\leq ", "≥⩾≧": r"\geq ", "≠": r"\neq ", "≈≅": r"\approx ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅⌀": r"\emptyset ", "°": r"^\circ ", "′’": "'", "″": "''",
    "…": r"\ldots ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "∨": r"\lor ", "∧": r"\land ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "∠": r"\angle ", "、": ",", "\u200b\u200c\u200d\u2060\ufeff": "",
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
_E_NOTATION = re.compile(r"(?<![\w.}\\])(\d{1,15}(?:\.\d{1,15})?)[eE]\+?(-?\d{1,3})(?![\w.])")
_EULER = re.compile(r"(?<![a-zA-Z\\])e(?![a-zA-Z])")
_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])", ""),
        (r"(?<=\d)(?:,\\!\s*|\{,\})(?=\d{3})", ""),  # 10,\!080 and 10{,}080
        (r"(?:(?<!\\)\\[!,;: ]|\\quad|\\qquad|~|\s)+", " "),  # one blank at most, for the rules below
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),  # \frac12
        (r"\^\s*\{?\\circ\}?|\\degree(?![a-zA-Z])", ""),
        (r"\\\$|[$€£¥]", ""),
        (r"\\%|(?<=[\d}])\s*(?:\\text\{\s*)?(?:percent|percentage|pct)\s*\}?\s*$", "%"),
        (r"\\ge(?:qslant|qq)?(?![a-zA-Z])|>=", r"\\geq "),
        (r"\\le(?:qslant|qq)?(?![a-zA-Z])|<=", r"\\leq "),
        (r"\\ne(?![a-zA-Z])|!=", r"\\neq "),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\(begin|end)\{bmatrix\}", r"\\\1{pmatrix}"),
        (r"\\(?:varnothing|O)(?![a-zA-Z])|^\s*\\\{\s*\\\}\s*$", r"\\emptyset "),
        (
            r"\\(?:mathbb|Bbb)\s*([A-Z])|\\(?:mathbb|Bbb)\{\s*([A-Z])\s*\}|\\([RNZQC])(?![a-zA-Z])",
            r"\\mathbb{\1\2\3}",
        ),
        (r"\\(?:mathrm|mathbf|mathit|boldsymbol|operatorname)\{\s*([ei])\s*\}", r"\1"),
        (r"\\(?:[lc]?dots|dots[bcm])(?![a-zA-Z])|\.\.\.", r"\\ldots "),
        (r"\*\*", "^"),
        (r"\^\s*(-\d+)", r"^{\1}"),  # 10^-3
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r" \\times "),  # 3 x 10^8
        (
            r"^\s*(?:\\(?:approx|sim|simeq|thickapprox)(?![a-zA-Z])|(?:\\text\{)?\s*(?:approximately|about)\s*\}?)",
            "",
        ),
        (r"^\s*([a-zA-Z](?:_\{?\w+\}?)?)\s*\\approx(?![a-zA-Z])", r"\1="),
        (  # 101 (base 2), 101_{\text{base } 2}
            r"(?<=[\dA-F])\s*_?\s*\{?\s*\(?(?:\\(?:text|mathrm)\{)?\s*\(?\s*(?:in\s+)?base[\s{}-]*(\w+)[\s})]*$",
            r"_{\1}",
        ),
    ]
]
# A unit at the end, after a number: `5.4 \text{ cents}`, `15\mbox{ cm}^2`, `270/7 \text{ degrees}`.
_UNIT = re.compile(
    r"(?<=[\d}])\s*\\(?:text(?:rm|bf|it|normal)?|mbox|mathrm)\{"
    r"(?!\s*[aApP]\.?\s*[mM]\.?\s*\}|\s*(?:and|or)\b)(?=[^{}]*[a-zA-Z])[^{}]*\}(?:\^\{?\d\}?)?$"
)


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
    for pattern, new in _REWRITES:
        answer = pattern.sub(new, answer)
    return _UNIT.sub("", answer.strip().removesuffix(".").strip()).strip()


def scientific(answer: str, reference: str) -> tuple[str, str]:
    """Both, with `3e8` as a number where it is one: `2e-1` beside `-1+2e` is Euler's number, doubled, less 1."""
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
