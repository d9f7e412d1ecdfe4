"""What an algorithm is made of: a term names one part of each family, a recipe is a tuple of terms.

A part is a pure function with its formula and what it needs. The families are tables, in the order of the paper:
`CLIPS` (the stabilisation mask), `DENOMINATORS` (the reference policy), `ADVANTAGES`, `SHAPINGS` (the likelihood
term), then `LOSS_AGGREGATIONS` and `CORRECTIONS`. Terms, recipes and algorithms hold names and numbers only, so they
can be printed, compared and pickled. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hpt_ray.errors import UserError
from hpt_ray.utils.names import check_name

Stream = Literal["rollouts", "demonstrations", "rehearsal"]


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of a family's table.

    `needs` may name: "old" (logprobs of the sampler), "sequence" (of whole samples), "ratio" (a denominator that is
    an old or a frozen policy), "entropy", "values", "group" (other rollouts of the prompt), "union" (the group with
    its demonstration), "all_samples" (every sample of the optimizer step before the first backward pass),
    "reference" (logprobs of the frozen policy), "teacher" (the same on rollouts, before they are weighed),
    "length_constant", "shaping_gamma", "clip", "prefixes" (demonstrations that are prefixes of rollouts).
    `not_for` says why the part makes no sense on a stream.
    """

    function: Callable
    formula: str
    needs: frozenset[str] = frozenset()
    not_for: Mapping[Stream, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Term:
    """One policy term: −Σ sg(c)·log π_θ / Z over one stream, c = m · Â · s · π_θ/π_ref.

    `clip` names the stabilisation mask m, `shaping` the factor s of the likelihood term.

    Example: `Term("rollouts", advantage="group_std", denominator="old", clip="ppo",
    loss_aggregation="seq-mean-token-mean")` is GRPO.
    """

    stream: Stream
    advantage: str
    denominator: str
    clip: str = "none"
    shaping: str = "none"
    loss_aggregation: str = "seq-mean-token-sum-norm"
    coef: float = 1.0

    def __str__(self) -> str:
        return (
            f"{self.coef:g} × {self.stream}: Â {self.advantage}, π_ref {self.denominator}, m {self.clip}, "
            f"s {self.shaping}, Z {self.loss_aggregation}"
        )


def on_rollouts(
    clip: str,
    denominator: str,
    advantage: str,
    loss_aggregation: str,
    *,
    shaping: str = "none",
    coef: float = 1.0,
) -> Term:
    """A term on the policy's own rollouts, in the order of the table of algorithms."""
    return Term("rollouts", advantage, denominator, clip, shaping, loss_aggregation, coef)


def on_demos(
    clip: str, denominator: str, advantage: str, loss_aggregation: str, *, shaping: str = "none"
) -> Term:
    """The same on demonstrations."""
    return Term("demonstrations", advantage, denominator, clip, shaping, loss_aggregation)


def nll(loss_aggregation: str, *, shaping: str = "none", coef: float = 1.0) -> Term:
    """Supervised fine-tuning as a policy gradient: Â = 1 and π_ref = π_θ, so −log π_θ of demonstrations."""
    return Term("demonstrations", "one", "current", "none", shaping, loss_aggregation, coef)


def imitation(denominator: str, loss_aggregation: str, *, clip: str = "none", shaping: str = "none") -> Term:
    """Demonstrations with Â = 1, weighed by π_θ/π_ref."""
    return on_demos(clip, denominator, "one", loss_aggregation, shaping=shaping)


def off_policy(advantage: str, loss_aggregation: str, *, shaping: str = "luffy") -> Term:
    """Off-policy RL on demonstrations with π_ref = 1: −Σ f(π_θ) Â / Z."""
    return on_demos("none", "one", advantage, loss_aggregation, shaping=shaping)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Which rollouts continue the first tokens of their prompt's demonstration: `rule` names one of `PREFIX_RULES`.

    `schedule` (first, last, number of steps) is the share p that its lengths follow, falling on half a cosine; None
    where the results decide.
    """

    rule: str
    schedule: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """The terms of one variant of an algorithm, with the numbers that go with them.

    `offline` holds other demonstration terms by the name of the offline branch. The entropy bonus
    is divided like each stream's first term, unless `entropy_aggregation` names one for all samples.
    `mu` (first, last, number of steps) multiplies demonstrations by μ and rollouts by 1 − μ; see `Estimator.at`.
    `demonstration_in_group`: the demonstration takes the place of one of the n rollouts.
    `prefixes`: rollouts continue a prefix of the demonstration, which trains where there is a term on demonstrations.
    """

    terms: tuple[Term, ...]
    clip_low: float = 0.2
    clip_high: float = 0.2
    entropy_coef: float = 0.0
    entropy_aggregation: str | None = None
    shaping_gamma: float = 0.1
    mu: tuple[float, float, float] | None = None
    offline: Mapping[str, tuple[Term, ...]] = field(default_factory=dict)
    demonstration_in_group: bool = False
    prefixes: Prefixes | None = None

    def terms_of(self, offline_branch: str) -> tuple[Term, ...]:
        """The rollout terms, and the demonstration terms of `offline_branch` ("sft": the recipe's own)."""
        if offline_branch == "sft":
            return self.terms
        return tuple(t for t in self.terms if t.stream == "rollouts") + self.offline[offline_branch]


def official(*terms: Term, **others: Any) -> Recipe:
    """What the released HPT code computes: with an entropy bonus over all tokens of a micro-batch."""
    return Recipe(terms, entropy_coef=0.001, entropy_aggregation="official-micro-batch-mean", **others)


@dataclass(frozen=True, repr=False)
class Algorithm:
    """A record of the table of algorithms; printing it shows what it is.

    `gate` is the one of `GATES` that belongs to it: which data trains. `paper` None: the default is the paper's.
    """

    name: str
    title: str
    formula: str
    source: str
    gate: str
    default: Recipe
    paper: Recipe | None = None
    official: Recipe | None = None
    notes: str = ""

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.default.terms

    def recipe(self, mode: str) -> Recipe:
        """The recipe of a mode: "default", "paper" or "official"; UserError where there is none."""
        recipes = {"default": self.default, "paper": self.paper or self.default, "official": self.official}
        recipe = recipes[check_name("algorithm.mode", mode, recipes)]
        if recipe is None:
            raise UserError(
                f"algorithm.mode=official: the official HPT code does not run {self.name}; "
                "use mode=default or mode=paper."
            )
        return recipe

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.title}", f"  loss    {self.formula}", f"  source  {self.source}"]
        lines.append(f"  data    {self.gate}")
        lines += [f"  term    {term}" for term in self.terms]
        lines += [f"  note    {line}" for line in self.notes.splitlines()]
        return "\n".join(lines)
