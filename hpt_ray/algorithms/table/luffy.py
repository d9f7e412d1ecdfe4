"""LUFFY: one demonstration and n−1 rollouts form one group; the demonstration is off-policy RL."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term


def off_policy(advantage: str, normalizer: str, shaping: str = "luffy", coef: float = 1.0) -> Term:
    """Off-policy RL on demonstrations with π_ref = 1: −Σ f(π_θ) Â / Z."""
    return Term("demonstrations", advantage, "one", shaping=shaping, normalizer=normalizer, coef=coef)


def _recipe(advantage: str, mask: str, normalizer: str) -> tuple[Term, ...]:
    rollouts = Term("rollouts", advantage, "old", mask, normalizer=normalizer)
    return rollouts, off_policy(advantage, normalizer)


LUFFY = Algorithm(
    name="luffy",
    title="learning to reason under off-policy guidance",
    formula="−(1/Z) [Σ_rollouts Σ_t ρ_it Â_i + Σ_t f(π_θ(τ*_t)) Â*],  f(p) = p/(p+0.1), "
    "Â = R − mean_{G ∪ demo}, Z = N·(group size)·C",
    source="arXiv 2504.14945, Eq 5 to 8; arXiv 2509.04419, Eq 20",
    gate="both",
    default=Recipe(_recipe("union_mean", "none", "union_constant"), demonstration_in_group=True),
    paper=Recipe(_recipe("union_std", "clip", "union_token_mean"), demonstration_in_group=True),
    official=Recipe(
        _recipe("union_mean", "none", "official_sum"),
        entropy_coef=0.001,
        entropy_normalizer="official_microbatch_mean",
        demonstration_in_group=True,
    ),
    notes="paper: with std and clip, Z = N·(tokens of the group).",
)
