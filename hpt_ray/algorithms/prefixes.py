"""Which rollouts continue a prefix of their prompt's demonstration, and how long the prefix is.

In: a `Prefixes`, a prompt, the steps done and a seed; or the rollouts that a prompt has so far. Out: the prefix, the
first k of the L tokens of the demonstration. Its last token is never given, so that a rollout has at least one token of
its own. A rule is one record of `PREFIX_RULES`, and everything that depends on which rule an algorithm has is read from
there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import numpy as np

from hpt_ray.algorithms.base import Prefixes
from hpt_ray.types import Group, Prompt, has_reward

Schedule = tuple[float, float, float]  # first, last, number of steps
PIECES = 5  # into which UFT's code cuts a demonstration
ANCHORS = 10  # the same of BREAD


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """`share`: (schedule, steps done, generator of random numbers) → k/L; None: none at first, see `search`."""

    share: Callable[[Schedule, int, np.random.Generator], float] | None
    doc: str
    only_last: bool = False  # of a prompt's rollouts the last one alone; else all, with the same prefix


def falling(schedule: Schedule, step: int) -> float:
    """From the first to the last value on half a cosine."""
    first, last, steps = schedule
    done = min(1.0, step / steps) if steps else 1.0
    return last + (first - last) * 0.5 * (1 + cos(pi * done))


def uniform(schedule: Schedule, step: int, random: np.random.Generator) -> float:
    """k/L ~ U(p, first value), p falling (arXiv 2507.01679, A.2)."""
    low, high = sorted((falling(schedule, step), schedule[0]))
    return random.uniform(low, high)


def binomial(schedule: Schedule, step: int, random: np.random.Generator) -> float:
    """k/L = j/5 with j ~ Binomial(5, p), p falling; 0 once it has fallen (arXiv 2505.16984, B.1)."""
    if schedule[2] and step >= schedule[2]:
        return 0.0
    return int(random.binomial(PIECES, falling(schedule, step))) / PIECES


PREFIX_RULES: dict[str, PrefixRule] = {
    "last": PrefixRule(
        uniform, "the last rollout of a prompt continues k of L tokens, k/L ~ U(p, first p)", only_last=True
    ),
    "all": PrefixRule(
        binomial, "all rollouts of a prompt continue the same k of L tokens, k/L = j/5, j ~ Binomial(5, p)"
    ),
    "search": PrefixRule(
        None,
        "where all n rollouts of a prompt are wrong, n more continue k of L tokens, k/L = j/10, j by binary search "
        "until some are right and some are not; the last n train",
    ),
}


def search(group: Group) -> int:
    """k of the n rollouts that are to be drawn next; 0 where those that are there will do.

    Binary search over the tenths of the demonstration for a prefix with which some of the rollouts are right and some
    wrong (arXiv 2506.17211): more of it where all were wrong, less where all were right. Rollouts without any prefix
    that are all right will do, and so does a group of which a worker lost some.
    """
    demonstration = group.prompt.demonstration
    results: defaultdict[int, list[bool]] = defaultdict(list)
    for rollout, result in group.pairs:
        if not rollout.finish.is_response:
            return 0
        results[rollout.prefix_length] += [result.correct] if has_reward(rollout, result) else []
    if demonstration is None or any(any(right) and not (k and all(right)) for k, right in results.items()):
        return 0
    low = max((k for k, right in results.items() if not any(right)), default=0)
    high = min((k for k, right in results.items() if any(right)), default=len(demonstration.token_ids))
    lengths = {len(demonstration.token_ids) * j // ANCHORS for j in range(1, ANCHORS)} - results.keys()
    between = sorted(k for k in lengths if low < k < high)
    return between[len(between) // 2] if between else 0


def prefix_of(prompt: Prompt, prefixes: Prefixes, step: int, seed: int) -> np.ndarray:
    """[k] int32, what the prompt's rollouts continue after `step` steps; empty without a demonstration."""
    share = PREFIX_RULES[prefixes.rule].share
    if share is None or prefixes.schedule is None:
        return first_tokens(prompt, 0)
    return first_tokens(prompt, share(prefixes.schedule, step, np.random.default_rng(seed)))


def first_tokens(prompt: Prompt, share: float) -> np.ndarray:
    """[k] int32, this share of the demonstration, rounded down."""
    if prompt.demonstration is None:
        return np.zeros(0, np.int32)
    tokens = prompt.demonstration.token_ids
    return tokens[: min(int(share * len(tokens) + 1e-9), len(tokens) - 1)]
