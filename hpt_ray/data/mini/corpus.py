"""The splits of the small task and the corpus of its weak base.

Held-out questions are drawn first, each split from its own fixed seed; no later split holds one of
them. The base corpus holds neither held-out nor training questions, and its documents have two
faults that post-training can remove: slips (a wrong line, followed consistently) and endings without
a box. Everything is a function of the constants below: the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from hpt_ray.data.mini.families import (
    BASE_FAMILIES,
    FAMILIES,
    MAX_VALUE,
    PROBLEM_MAKERS,
    RECOMBINED_FAMILIES,
    TRAIN_FAMILIES,
    Problem,
    apply,
)

VALIDATION_PER_FAMILY = 48
TEST_PER_FAMILY = 100
NUM_TRAIN = 600
NUM_TRAIN_LARGE = 4000
NUM_BASE_DOCUMENTS = 30_000
SLIP_PROBABILITY = 0.12
SLIPS = (-10, -2, -1, 1, 2, 10)
UNBOXED_PROBABILITY = 0.6
REDRAWS = 1000  # in a row, before a family counts as used up and may repeat itself


def draw_split(name: str, families: tuple[str, ...], size: int, held_out: Iterable[str]) -> list[Problem]:
    """`size` problems, families in rotation, none with a prompt in `held_out`.

    Duplicates are drawn again; a family that has no more distinct questions (`geo` in the large
    split: 303 exist) repeats its own.
    """
    rng = random.Random(f"mini/{name}")
    excluded = frozenset(held_out)
    seen: set[str] = set()
    problems: list[Problem] = []
    while len(problems) < size:
        make = PROBLEM_MAKERS[families[len(problems) % len(families)]]
        for _ in range(REDRAWS):
            problem = make(rng)
            if problem.prompt not in excluded and problem.prompt not in seen:
                break
        while problem.prompt in excluded:
            problem = make(rng)
        seen.add(problem.prompt)
        problems.append(problem)
    return problems


def draw_splits() -> dict[str, list[Problem]]:
    """`validation` and `test` (eight families), `recombined` (two others), `train` and `train-large` (six families)."""
    validation = draw_split("validation", FAMILIES, VALIDATION_PER_FAMILY * len(FAMILIES), ())
    held_out = {problem.prompt for problem in validation}
    test = draw_split("test", FAMILIES, TEST_PER_FAMILY * len(FAMILIES), held_out)
    held_out |= {problem.prompt for problem in test}
    return {
        "validation": validation,
        "test": test,
        "recombined": draw_split(
            "recombined", RECOMBINED_FAMILIES, TEST_PER_FAMILY * len(RECOMBINED_FAMILIES), held_out
        ),
        "train": draw_split("train", TRAIN_FAMILIES, NUM_TRAIN, held_out),
        "train-large": draw_split("train-large", TRAIN_FAMILIES, NUM_TRAIN_LARGE, held_out),
    }


def draw_base_corpus(excluded: Iterable[str]) -> Iterator[tuple[Problem, str]]:
    """The documents of the weak base: a problem and its faulty solution. Problems may repeat."""
    rng = random.Random("mini/base")
    forbidden = frozenset(excluded)
    for i in range(NUM_BASE_DOCUMENTS):
        make = PROBLEM_MAKERS[BASE_FAMILIES[i % len(BASE_FAMILIES)]]
        problem = make(rng)
        while problem.prompt in forbidden:
            problem = make(rng)
        yield problem, faulty_solution(problem, rng)


def faulty_solution(problem: Problem, rng: random.Random) -> str:
    """A step-by-step solution with slips and, more often than not, an ending without a box.

    Lines after a slip go on from the wrong value; all values are kept within 0..99, so that no
    document holds a number the tokens of the task are not made for.
    """
    value = problem.start
    lines = []
    for symbol, operand in problem.operations:
        result = apply(value, (symbol, operand))
        if rng.random() < SLIP_PROBABILITY:
            result += rng.choice(SLIPS)
        result = min(max(result, 0), MAX_VALUE)
        lines.append(f"{value}{symbol}{operand}={result}.")
        value = result
    unboxed = rng.random() < UNBOXED_PROBABILITY
    lines.append(f"So the answer is {value}." if unboxed else f"\\boxed{{{value}}}")
    return " ".join(lines)
