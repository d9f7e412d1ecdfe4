"""The gate: from a question's verdicts to the weights of its rollouts and of its demonstration.

In: a `Group`. Out: a `Decision` with α, β and the reason. `P` = solved / n is never formed as a float:
the switch compares counts, so 2/8 is 2 of 8 whatever n does to rounding (paper, Eq 8 to 10).

A gate is a function of (group, gamma) and a row of `GATES`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor

from hpt_ray.records import Decision, Group

Gate = Callable[[Group, float], Decision]


def threshold(gamma: float, num_rollouts: int) -> int:
    """The largest number of solved rollouts that still asks for the demonstration: ⌊γ·n⌋.

    γ < 0 never asks. Example: `threshold(2 / 8, 8) == 2`.
    """
    return floor(gamma * num_rollouts + 1e-9)


def is_certain(gamma: float, *, num_solved: int, num_graded: int, num_rollouts: int) -> bool:
    """Whether the switch will ask for the demonstration whatever the rollouts still to come say.

    Then they need not be generated: the decision and the gradient are the same without them.
    Example: with γ = 2/8, six wrong of eight settle it.
    """
    return num_solved + (num_rollouts - num_graded) <= threshold(gamma, num_rollouts)


def switch(group: Group, gamma: float) -> Decision:
    """The paper's gate: α = 1[P > γ], β = 1[P ≤ γ] (Eq 10).

    A question without a demonstration keeps its rollouts, and the reason says so.
    """
    solved, total = group.num_solved, len(group.rollouts)
    if solved > threshold(gamma, total):
        return Decision(1.0, 0.0, solved, total, "solved")
    if group.question.demonstration is None:
        return Decision(1.0, 0.0, solved, total, "no_demonstration")
    return Decision(0.0, 1.0, solved, total, "unsolved")


def rollouts(group: Group, gamma: float) -> Decision:
    """Rollouts always: plain RL."""
    return Decision(1.0, 0.0, group.num_solved, len(group.rollouts), "rollouts_always")


def demonstrations(group: Group, gamma: float) -> Decision:
    """The demonstration always: plain SFT. A question without one trains nothing, and is counted."""
    solved, total = group.num_solved, len(group.rollouts)
    if group.question.demonstration is None:
        return Decision(0.0, 0.0, solved, total, "no_demonstration")
    return Decision(0.0, 1.0, solved, total, "demonstrations_always")


def both(group: Group, gamma: float) -> Decision:
    """Rollouts and demonstration together, as LUFFY and SRFT train."""
    solved, total = group.num_solved, len(group.rollouts)
    if group.question.demonstration is None:
        return Decision(1.0, 0.0, solved, total, "no_demonstration")
    return Decision(1.0, 1.0, solved, total, "both_always")


GATES: dict[str, Gate] = {
    "switch": switch,
    "rollouts": rollouts,
    "demonstrations": demonstrations,
    "both": both,
}
