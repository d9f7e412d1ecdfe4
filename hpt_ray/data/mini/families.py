"""The families of questions of the small task, and how their solutions are written.

Every question is a chain: a start value and operations on it. What differs is the text of the prompt.
`PROBLEM_MAKERS[family](rng)` draws a problem; `solution` writes its lines, one operation each
("step") or the way a terser teacher would ("terse"). Every value stays within 0..99 and no text here
is wrong: the slips of the weak base are made in `corpus`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Style = Literal["step", "terse"]
Operation = tuple[str, int]  # ("+", 5), ("-", 9), ("*", 2)
Operations = tuple[Operation, ...]

NAMES = {"Tom": "He", "Ann": "She", "Ben": "He", "Eva": "She"}
OBJECTS = ("apples", "pens", "coins", "books")
MAX_VALUE = 99


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. Example: `Problem("expr", "Compute 4*3-6.", 4, (("*", 3), ("-", 6)))`"""

    family: str
    prompt: str
    start: int
    operations: Operations

    @property
    def answer(self) -> int:
        value = self.start
        for operation in self.operations:
            value = apply(value, operation)
        return value


def apply(value: int, operation: Operation) -> int:
    """The value after one operation."""
    symbol, operand = operation
    if symbol == "+":
        return value + operand
    if symbol == "-":
        return value - operand
    return value * operand


def solution(problem: Problem, style: Style) -> str:
    """The worked answer: its lines and the boxed result, e.g. `4*3-6=6. \\boxed{6}`."""
    value = problem.start
    lines = []
    for line in split_lines(problem, style):
        terms = str(value)
        for symbol, operand in line:
            terms += f"{symbol}{operand}"
            value = apply(value, (symbol, operand))
        lines.append(f"{terms}={value}.")
    return " ".join([*lines, f"\\boxed{{{value}}}"])


def split_lines(problem: Problem, style: Style) -> list[Operations]:
    """The operations of each solution line.

    Terse: neighbouring + and − share a line, two by two; a product in one expression shares it with
    what follows; a doubling stands alone; `eval` and `geo` stay step by step, since they carry the
    skills that the base does not have.
    """
    if style == "terse" and problem.family in ("expr", "boxes", "stock"):
        return [problem.operations]
    lines: list[Operations] = []
    for operation in problem.operations:
        may_join = style == "terse" and problem.family in ("chain", "word", "list", "lose", "mix")
        if may_join and lines and len(lines[-1]) == 1 and "*" not in (operation[0], lines[-1][0][0]):
            lines[-1] = (*lines[-1], operation)
        else:
            lines.append((operation,))
    return lines


def _digit(rng: random.Random) -> int:
    return rng.randint(2, 9)


def _draw_chain(rng: random.Random, num_operations: int, *, doubling: bool) -> tuple[int, Operations]:
    """A start value in 10..60 and operations that keep the running value in 1..99."""
    start = value = rng.randint(10, 60)
    operations: list[Operation] = []
    while len(operations) < num_operations:
        if doubling and 2 * value <= MAX_VALUE and rng.random() < 0.25:
            operation = ("*", 2)
        else:
            operation = (rng.choice("+-"), _digit(rng))
        after = apply(value, operation)
        if 1 <= after <= MAX_VALUE:
            operations.append(operation)
            value = after
    return start, tuple(operations)


def _draw_product(rng: random.Random) -> tuple[int, int, str, int]:
    """a, b, sign, c with a·b ± c ≥ 1."""
    while True:
        a, b, sign, c = _digit(rng), _digit(rng), rng.choice("+-"), _digit(rng)
        if sign == "+" or a * b - c >= 1:
            return a, b, sign, c


def _chain(rng: random.Random) -> Problem:
    start, operations = _draw_chain(rng, rng.randint(1, 3), doubling=True)
    texts = {"+": "Add {}.", "-": "Subtract {}.", "*": "Double it."}
    middle = " ".join(texts[symbol].format(operand) for symbol, operand in operations)
    return Problem("chain", f"Start with {start}. {middle} What is the result?", start, operations)


def _word(rng: random.Random) -> Problem:
    name, things = rng.choice(list(NAMES)), rng.choice(OBJECTS)
    start, operations = _draw_chain(rng, rng.randint(1, 2), doubling=False)
    texts = {"+": "buys {} more", "-": "gives away {}"}
    middle = " ".join(f"{NAMES[name]} {texts[symbol].format(operand)}." for symbol, operand in operations)
    prompt = f"{name} has {start} {things}. {middle} How many {things} does {name} have now?"
    return Problem("word", prompt, start, operations)


def _expr(rng: random.Random) -> Problem:
    a, b, sign, c = _draw_product(rng)
    return Problem("expr", f"Compute {a}*{b}{sign}{c}.", a, (("*", b), (sign, c)))


def _list(rng: random.Random) -> Problem:
    terms = [_digit(rng) for _ in range(rng.randint(2, 4))]
    prompt = f"Find the sum of {', '.join(map(str, terms))}."
    return Problem("list", prompt, terms[0], tuple(("+", term) for term in terms[1:]))


def _eval(rng: random.Random) -> Problem:
    a, x, sign, c = _draw_product(rng)
    return Problem("eval", f"If x={x}, find {a}x{sign}{c}.", a, (("*", x), (sign, c)))


def _geo(rng: random.Random) -> Problem:
    while True:
        length, width = rng.randint(3, 46), _digit(rng)
        if width < length and 2 * (length + width) <= MAX_VALUE:
            break
    prompt = f"A rectangle has length {length} and width {width}. Find its perimeter."
    return Problem("geo", prompt, length, (("+", width), ("*", 2)))


def _boxes(rng: random.Random) -> Problem:
    name, things = rng.choice(list(NAMES)), rng.choice(OBJECTS)
    a, b, sign, c = _draw_product(rng)
    event = f"buys {c} more" if sign == "+" else f"gives away {c}"
    prompt = (
        f"{name} has {a} boxes with {b} {things} in each. {NAMES[name]} {event}. "
        f"How many {things} does {name} have now?"
    )
    return Problem("boxes", prompt, a, (("*", b), (sign, c)))


def _lose(rng: random.Random) -> Problem:
    name, things = rng.choice(list(NAMES)), rng.choice(OBJECTS)
    start, operations = _draw_chain(rng, rng.randint(1, 2), doubling=False)
    texts = {"+": "gets {} more {}", "-": "loses {} {}"}
    middle = " ".join(f"{NAMES[name]} {texts[symbol].format(d, things)}." for symbol, d in operations)
    prompt = f"{name} has {start} {things}. {middle} How many {things} are left?"
    return Problem("lose", prompt, start, operations)


def _mix(rng: random.Random) -> Problem:
    """A sentence of `word` and one of `lose`, in either order, with either question."""
    name, things = rng.choice(list(NAMES)), rng.choice(OBJECTS)
    start, operations = _draw_chain(rng, 2, doubling=False)
    texts = [
        {"+": "buys {} more", "-": "gives away {}"},
        {"+": f"gets {{}} more {things}", "-": f"loses {{}} {things}"},
    ]
    rng.shuffle(texts)
    middle = " ".join(
        f"{NAMES[name]} {of[symbol].format(d)}." for of, (symbol, d) in zip(texts, operations, strict=True)
    )
    question = rng.choice((f"does {name} have now", "are left"))
    prompt = f"{name} has {start} {things}. {middle} How many {things} {question}?"
    return Problem("mix", prompt, start, operations)


def _stock(rng: random.Random) -> Problem:
    """What `boxes` begins with, then a sentence and the question of `lose`."""
    name, things = rng.choice(list(NAMES)), rng.choice(OBJECTS)
    a, b, sign, c = _draw_product(rng)
    event = f"gets {c} more {things}" if sign == "+" else f"loses {c} {things}"
    prompt = (
        f"{name} has {a} boxes with {b} {things} in each. {NAMES[name]} {event}. How many {things} are left?"
    )
    return Problem("stock", prompt, a, (("*", b), (sign, c)))


PROBLEM_MAKERS: dict[str, Callable[[random.Random], Problem]] = {
    "chain": _chain,
    "word": _word,
    "expr": _expr,
    "list": _list,
    "eval": _eval,
    "geo": _geo,
    "boxes": _boxes,
    "lose": _lose,
    "mix": _mix,
    "stock": _stock,
}
TRAIN_FAMILIES = ("chain", "word", "expr", "list", "eval", "geo")  # trained on; `eval`, `geo` new to the base
OOD_FAMILIES = ("boxes", "lose")  # known to the base, neither demonstrated nor trained on
BASE_FAMILIES = ("chain", "word", "list", "expr", "boxes", "lose")  # what the weak base has seen
FAMILIES = (*TRAIN_FAMILIES, *OOD_FAMILIES)
# Harder: sentences that the base has read, in combinations that it has not. In test files alone, so that nothing is
# ever chosen by them. New steps in a known order (`geo`, then "Add 4.") are no use: no method solves 5 % of them.
RECOMBINED_FAMILIES = ("mix", "stock")
