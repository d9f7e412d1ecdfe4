"""The gate: from a prompt's results to the weights of its rollouts and of its demonstration, and to its samples.

In: a `Group`, γ, and what the prompt's earlier attempts came to. Out: a `Decision` with α, β and the reason
(paper, Eq 8 to 10); `samples_of` makes the samples that the learner trains on from it. A gate is one record of
`GATES`, and everything that depends on which gate a run has is read from there. docs/methods.md compares them.

The switch compares counts, so 2/8 is 2 of 8 whatever n does to rounding. Soft gates give weights between 0
and 1; one within `NEGLIGIBLE` of 0 or 1 becomes that, for a sample of no weight would cost a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import betainc

from hpt_ray.algorithms.outside import Table
from hpt_ray.types import Decision, Group, Prompt, RewardResult, Rollout, Sample, can_train, has_reward

NEGLIGIBLE = 1e-3
DISCOUNT = 0.5  # δ: what an attempt counts at the next one

# α, β by the number of solved rollouts; with more, rollouts alone. From `select_on_off_ada_balance` (type 2)
# of the official code, whose counts include the demonstration. That code never uses them in a loss.
OFFICIAL_SOFT = ((0.0, 1.0), (1 / 8, 1 / 2), (1 / 4, 1 / 4), (1 / 2, 1 / 8))


class Attempt(NamedTuple):
    """One attempt of a prompt: rollouts that were right, of the responses that have a reward."""

    num_correct: int
    num_responses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate. Only the first two must be given; the other defaults are those of a soft gate.

    `function`        (group, γ, earlier attempts, the oldest first) → `Decision`; pure
    `data`            which samples train, in words
    `rule`            (γ, n) → the same with a run's numbers; None: `data` says it all
    `demonstrations`  a prompt whose demonstration is missing or does not fit: "required", it is dropped;
                      "optional", it trains on its rollouts; "ignored", demonstrations do not train
    `needs_rollouts`  False: rollouts change nothing, and none are sampled
    `by_results`      α and β follow the results (feedback functions; paper, Eq 9)
    `either_or`       a prompt trains on its rollouts or on its demonstration, never on both
    `is_certain`      whether the demonstration is sure to train, and it alone, before all rollouts are in; see
                      the function of that name. None: this gate needs them all
    `wrong_gamma`     (γ, n) → why this gate cannot use such a γ, and what to set; None where it can
    `prefixes`        rollouts continue prefixes of the demonstration, which trains as far as they do
    """

    function: Callable[[Group, float, Sequence[Attempt]], Decision]
    data: str
    rule: Callable[[float, int], str] | None = None
    demonstrations: Literal["required", "optional", "ignored"] = "optional"
    needs_rollouts: bool = True
    by_results: bool = True
    either_or: bool = False
    is_certain: Callable[..., bool] | None = None
    wrong_gamma: Callable[[float, int], str | None] | None = None
    prefixes: bool = False

    @property
    def needs_demonstrations(self) -> bool:
        return self.demonstrations != "ignored"

    @property
    def always_both(self) -> bool:
        """Rollouts and demonstration of every prompt train together, so they can be compared."""
        return self.needs_rollouts and self.needs_demonstrations and not (self.by_results or self.prefixes)

    def decide(self, group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
        """What the group trains on: nothing if it was replaced, else as the gate says."""
        if group.replaced:
            return Decision(0.0, 0.0, group.num_correct, len(group.own), "replaced")
        return self.function(group, gamma, history)

    def samples_at_most(self, num_rollouts: int) -> int:
        """Of one prompt with `num_rollouts` rollouts."""
        rollouts = num_rollouts if self.needs_rollouts else 0
        demonstrations = 1 if self.needs_demonstrations else 0
        return max(rollouts, demonstrations) if self.either_or else rollouts + demonstrations


def attempt_of(group: Group) -> Attempt:
    """Lost and aborted rollouts, those whose reward failed, and those that continue a prefix do not count."""
    return Attempt(group.num_correct, sum(has_reward(*pair) for pair in group.own))


def trains_nothing(group: Group, decision: Decision) -> bool:
    """All rewards of the group are equal, so its rollouts have no advantage, and no demonstration is asked for.

    True only where the algorithm compares the rollouts of a prompt (`Estimator.compares_rollouts`).
    """
    scores = {result.score for rollout, result in group.pairs if has_reward(rollout, result)}
    return len(scores) == 1 and decision.demo_weight == 0


def threshold(gamma: float, num_rollouts: int) -> int:
    """The largest number of solved rollouts that still asks for the demonstration: ⌊γ·n⌋.

    γ < 0 never asks. Example: `threshold(2 / 8, 8) == 2`.
    """
    return floor(gamma * num_rollouts + 1e-9)


def is_certain(gamma: float, *, num_correct: int, num_graded: int, num_rollouts: int) -> bool:
    """Whether the switch will ask for the demonstration whatever the rollouts still to come say.

    Then they need not be generated: the decision and the gradient are the same without them.
    Example: with γ = 2/8, six wrong of eight settle it. True of the switch only, and where all that are graded
    have a reward; of those still to come any may be lost or fail.
    """
    return num_correct + (num_rollouts - num_graded) <= threshold(gamma, num_rollouts)


def switch(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """The paper's gate: α = 1[P > γ], β = 1[P ≤ γ] (Eq 10). P is the share of those that have a reward.

    A prompt none of whose rollouts has one counts as unsolved.
    """
    solved, num_responses = attempt_of(group)
    beta = 1.0 if gamma >= 0 and solved <= threshold(gamma, num_responses) else 0.0
    return _decision(group, 1.0 - beta, beta)


def switch_rule(gamma: float, num_rollouts: int) -> str:
    most = threshold(gamma, num_rollouts)
    if most < 0:
        return f"γ = {gamma:g}: rollouts always"
    return (
        f"γ = {gamma:g}: at most {most} of {num_rollouts} solved → demonstration, more → rollouts; none there → "
        "rollouts"
    )


def between_counts(gamma: float, num_rollouts: int) -> str | None:
    """The switch solves "share ≤ γ" in integers, solved ≤ ⌊γ·n⌋: a γ·n between two integers is refused.

    0.33 of 3 would quietly mean 0 of 3. The tolerance is that of `threshold`.
    """
    count = gamma * num_rollouts
    if gamma <= 0 or abs(count - round(count)) < 1e-9:
        return None
    below = int(count)
    return (
        f"times {num_rollouts} rollouts it is {count:g}, which is no whole number: use "
        f"{below / num_rollouts:.12g} ({below} of {num_rollouts}) or {(below + 1) / num_rollouts:.12g} "
        f"({below + 1} of {num_rollouts})"
    )


def linear(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """α = P, β = 1 − P: the plainest functions that rise and fall with P. γ is not used.

    A prompt none of whose rollouts is a response counts as unsolved.
    """
    solved, num_responses = attempt_of(group)
    share = solved / max(num_responses, 1)
    return _decision(group, share, 1.0 - share)


def official_soft(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """The soft table of the official code (see `OFFICIAL_SOFT`), by count whatever n is. γ is not used.

    Where some rollouts have no reward, by the count that the share of the others would be of all n.
    """
    solved, num_responses = attempt_of(group)
    of_all = round(solved * len(group.rollouts) / max(num_responses, 1))
    return _decision(group, *dict(enumerate(OFFICIAL_SOFT)).get(of_all, (1.0, 0.0)))


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
    - β. Right rollouts of k attempts ago count δ^k. While all rollouts are wrong, S falls to 0 and F rises
      towards 2n, so β rises to 1 − (1 − γ)^(2n + 1), 0.90 at γ = 1/8, whatever the history. One lucky hit
      after failures leaves β = 0.65 there, where the switch at γ = 0 ends the demonstrations.
    """
    solved, failed = 0.0, 0.0
    for attempt in (*history, attempt_of(group)):
        solved = DISCOUNT * solved + attempt.num_correct
        failed = DISCOUNT * failed + attempt.num_responses - attempt.num_correct
    beta = float(betainc(1 + solved, 1 + failed, gamma))
    return _decision(group, 1.0 - beta, beta)


def not_inside(gamma: float, num_rollouts: int) -> str | None:
    """A solve rate is never known to be exactly 0 or 1, so at γ ≤ 0 or γ ≥ 1 `posterior` would never change."""
    if 0 < gamma < 1:
        return None
    return "no solve rate is ever known to be 0 or 1: set it above 0 and below 1, for example to 0.125"


def rollouts(group: Group, gamma: float, history: Sequence[Attempt]) -> Decision:
    """Rollouts always: plain RL."""
    return Decision(1.0, 0.0, group.num_correct, len(group.own), "rollouts_always")


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


GATES: Table[Gate] = Table(
    Gate,
    {
        "switch": Gate(
            function=switch,
            data="per prompt, its rollouts (weight α) or its demonstration (weight β), as the gate decides",
            rule=switch_rule,
            either_or=True,
            is_certain=is_certain,
            wrong_gamma=between_counts,
        ),
        "posterior": Gate(
            function=posterior,
            data="the rollouts of every prompt (weight α) and its demonstration (weight β = 1 − α)",
            rule=lambda gamma, n: f"both, α = 1 − β, β = Pr(solve rate ≤ {gamma:g} | results so far)",
            wrong_gamma=not_inside,
        ),
        "linear": Gate(
            function=linear,
            data="the rollouts of every prompt (weight α) and its demonstration (weight β = 1 − α)",
            rule=lambda gamma, n: "both, α = P, β = 1 − P",
        ),
        "official_soft": Gate(
            function=official_soft,
            data="the rollouts of every prompt (weight α) and its demonstration (weight β)",
            rule=lambda gamma, n: "both, α and β from the official code's table by solved count",
        ),
        "rollouts": Gate(
            function=rollouts,
            data="the rollouts of every prompt",
            rule=lambda gamma, n: "rollouts of every prompt, no demonstration",
            demonstrations="ignored",
            by_results=False,
        ),
        "prefixes": Gate(
            function=rollouts,
            data="the rollouts of every prompt, some of which continue a prefix of its demonstration",
            by_results=False,
            prefixes=True,
        ),
        "demonstrations": Gate(
            function=demonstrations,
            data="the demonstration of every prompt",
            rule=lambda gamma, n: "the demonstration of every prompt, no rollouts",
            demonstrations="required",
            needs_rollouts=False,
            by_results=False,
        ),
        "both": Gate(
            function=both,
            data="the rollouts and the demonstration of every prompt",
            rule=lambda gamma, n: f"{n} rollouts and the demonstration of every prompt",
            by_results=False,
        ),
    },
    "group, gamma, history",
    lambda function, data: Gate(function=function, data=data),
)


def samples_of(group: Group, decision: Decision, *, index: int, prefixes: bool = False) -> list[Sample]:
    """The samples of one prompt: its rollouts where α > 0, its demonstration where β > 0.

    `index` is the prompt's number within the optimizer step. Lost and aborted rollouts carry no samples, and
    neither do those whose reward failed: they are in no baseline. A demonstration has reward 1: it is correct by
    the data's word. With `prefixes` each prefix that rollouts continue is a sample too, once, with the weight α and
    the mean reward of these rollouts.
    """
    samples = []
    pairs = [pair for pair in group.pairs if can_train(*pair)] if decision.rollout_weight > 0 else []
    for rollout, result in pairs:
        samples.append(_sample(group, rollout, result, decision.rollout_weight, index))
    if decision.demo_weight > 0:
        samples.append(demo_sample(group.prompt, weight=decision.demo_weight, index=index))
    if prefixes:
        lengths = sorted({rollout.prefix_length for rollout, _ in pairs} - {0})
        for length in lengths:
            reward = np.mean([result.score for rollout, result in pairs if rollout.prefix_length == length])
            samples.append(
                demo_sample(group.prompt, length, float(reward), decision.rollout_weight, index=index)
            )
    return samples


def _sample(group: Group, rollout: Rollout, result: RewardResult, weight: float, index: int) -> Sample:
    """What the policy sampled; what it continues stands before it."""
    prompt = group.prompt
    return Sample(
        prompt_id=prompt.id,
        token_ids=np.concatenate([prompt.token_ids, rollout.token_ids]).astype(np.int32),
        prompt_length=len(prompt.token_ids) + rollout.prefix_length,
        old_logprobs=rollout.logprobs[rollout.prefix_length :],
        is_demo=False,
        reward=result.score,
        group=index,
        weight=weight,
    )


def demo_sample(
    prompt: Prompt, length: int | None = None, reward: float = 1.0, weight: float = 1.0, *, index: int = 0
) -> Sample:
    """The first `length` tokens of the demonstration; None: all."""
    assert prompt.demonstration is not None, f"the gate asked for a demonstration of {prompt.id}"
    demo = prompt.demonstration.token_ids[:length]
    return Sample(
        prompt_id=prompt.id,
        token_ids=np.concatenate([prompt.token_ids, demo]).astype(np.int32),
        prompt_length=len(prompt.token_ids),
        old_logprobs=np.full(len(demo), np.nan, np.float32),
        is_demo=True,
        reward=reward,
        group=index,
        weight=weight,
    )
