"""The gate: from a prompt's results to the weights of its rollouts and of its demonstration.

In: a `Group`, γ, and what the prompt's earlier attempts came to. Out: a `Decision` with α, β and the reason
(paper, Eq 8 to 10). A gate is a pure function of the three and a sample of `GATES`. docs/methods.md compares
them.

The switch compares counts, so 2/8 is 2 of 8 whatever n does to rounding. Soft gates give weights between 0
and 1; one within `NEGLIGIBLE` of 0 or 1 becomes that, for a sample of no weight would cost a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor
from typing import NamedTuple

from scipy.special import betainc

from hpt_ray.types import Decision, Group

NEGLIGIBLE = 1e-3
DISCOUNT = 0.5  # δ: what an attempt counts at the next one

# α, β by the number of solved rollouts; with more, rollouts alone. From `select_on_off_ada_balance` (type 2)
# of the official code, whose counts include the demonstration. That code never uses them in a loss.
OFFICIAL_SOFT = ((0.0, 1.0), (1 / 8, 1 / 2), (1 / 4, 1 / 4), (1 / 2, 1 / 8))


class Attempt(NamedTuple):
    """One attempt of a prompt: rollouts that were right, of those that were answers."""

    num_correct: int
    num_responses: int


Gate = Callable[[Group, float, Sequence[Attempt]], Decision]


def attempt_of(group: Group) -> Attempt:
    """Lost and aborted rollouts say nothing about the prompt and do not count."""
    return Attempt(group.num_correct, sum(rollout.finish.is_response for rollout in group.rollouts))


def threshold(gamma: float, num_rollouts: int) -> int:
    """The largest number of solved rollouts that still asks for the demonstration: ⌊γ·n⌋.

    γ < 0 never asks. Example: `threshold(2 / 8, 8) == 2`.
    """
    return floor(gamma * num_rollouts + 1e-9)


def is_certain(gamma: float, *, num_correct: int, num_graded: int, num_rollouts: int) -> bool:
    """Whether the switch will ask for the demonstration whatever the rollouts still to come say.

    Then they need not be generated: the decision and the gradient are the same without them.
    Example: with γ = 2/8, six wrong of eight settle it. True of the switch only.
    """
    return num_correct + (num_rollouts - num_graded) <= threshold(gamma, num_rollouts)


def switch(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """The paper's gate: α = 1[P > γ], β = 1[P ≤ γ] (Eq 10)."""
    beta = 1.0 if group.num_correct <= threshold(gamma, len(group.rollouts)) else 0.0
    return _decision(group, 1.0 - beta, beta)


def linear(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """α = P, β = 1 − P: the plainest functions that rise and fall with P. γ is not used.

    A prompt of which no rollout is an answer counts as unsolved.
    """
    solved, num_responses = attempt_of(group)
    share = solved / max(num_responses, 1)
    return _decision(group, share, 1.0 - share)


def official_soft(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """The soft table of the official code (see `OFFICIAL_SOFT`), by count whatever n is. γ is not used."""
    table = dict(enumerate(OFFICIAL_SOFT))
    return _decision(group, *table.get(group.num_correct, (1.0, 0.0)))


def posterior(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """β = Pr(p ≤ γ | results), α = 1 − β, where p is the rate at which the policy solves the prompt.

    The switch takes P for p, but 8 samples tell p to ±0.15 or so. Here p has the posterior
    Beta(1 + S, 1 + F): uniform before anything is known, S right and F wrong rollouts. This attempt's count 1
    each, those k attempts ago δ^k, for the policy has changed since. With δ = ½ this attempt weighs as much as
    all before it together, and with n rollouts an attempt S + F < 2n for ever. γ is in (0, 1).

    First attempt, n = 8, β at 0, 1, 2, 3, 4, 8 solved:    γ = 1/8: 0.70 0.31 0.09 0.02 0.00 0
                                                         γ = 2/8: 0.92 0.70 0.40 0.17 0.05 0
    At the latest of many attempts of 0/8, 1/8 and 2/8:    γ = 1/8: 0.90 0.65 0.36 (with 0/8 before each)

    Why no stream is shut for good while it has something to teach (a group without a right rollout has no
    advantage, so α needs at least one):
    - α. With s ≥ 1 right now, α = Pr(Bin(1 + S + F, γ) ≤ S) for whole counts, and is least after nothing but
      failures: α ≥ Pr(Bin(2n + 1, γ) ≤ 1) whatever the history. For n = 8 that is 0.35 at γ = 1/8 and 0.05
      at 2/8, and above `NEGLIGIBLE` up to 3/8. The switch gives 0 to any s ≤ γn: rollouts that are right at
      times are dropped at every attempt, so P never rises above γ.
    - β. Right answers of k attempts ago count δ^k. While all answers are wrong, S falls to 0 and F rises
      towards 2n, so β rises to 1 − (1 − γ)^(2n + 1), 0.90 at γ = 1/8, whatever the history. One lucky hit
      after failures leaves β = 0.65 there, where the switch at γ = 0 ends the demonstrations.
    """
    solved, failed = 0.0, 0.0
    for attempt in (*history, attempt_of(group)):
        solved = DISCOUNT * solved + attempt.num_correct
        failed = DISCOUNT * failed + attempt.num_responses - attempt.num_correct
    beta = float(betainc(1 + solved, 1 + failed, gamma))
    return _decision(group, 1.0 - beta, beta)


def rollouts(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """Rollouts always: plain RL."""
    return Decision(1.0, 0.0, group.num_correct, len(group.rollouts), "rollouts_always")


def demonstrations(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """The demonstration always: plain SFT. A prompt without one trains nothing, and is counted."""
    solved, total = group.num_correct, len(group.rollouts)
    if group.prompt.demonstration is None:
        return Decision(0.0, 0.0, solved, total, "no_demonstration")
    return Decision(0.0, 1.0, solved, total, "demonstrations_always")


def both(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """Rollouts and demonstration together, as LUFFY and SRFT train."""
    solved, total = group.num_correct, len(group.rollouts)
    if group.prompt.demonstration is None:
        return Decision(1.0, 0.0, solved, total, "no_demonstration")
    return Decision(1.0, 1.0, solved, total, "both_always")


def _decision(group: Group, alpha: float, beta: float) -> Decision:
    """α and β of a feedback function. A prompt without a demonstration keeps its rollouts whole."""
    solved, total = group.num_correct, len(group.rollouts)
    alpha, beta = (_snapped(weight) for weight in (alpha, beta))
    if beta and group.prompt.demonstration is None:
        return Decision(1.0, 0.0, solved, total, "no_demonstration")
    reason = "weighed" if alpha and beta else "unsolved" if beta else "solved"
    return Decision(alpha, beta, solved, total, reason)


def _snapped(weight: float) -> float:
    return 0.0 if weight < NEGLIGIBLE else 1.0 if weight > 1 - NEGLIGIBLE else weight


FEEDBACK = ("switch", "posterior", "linear", "official_soft")  # gates that look at the results
GATES: dict[str, Gate] = {
    "switch": switch,
    "posterior": posterior,
    "linear": linear,
    "official_soft": official_soft,
    "rollouts": rollouts,
    "demonstrations": demonstrations,
    "both": both,
}
