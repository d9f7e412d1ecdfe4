"""LUFFY: one demonstration and n−1 rollouts form one group; the demonstration is off-policy RL."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term


def off_policy(advantage: str, loss_aggregation: str, shaping: str = "luffy", coef: float = 1.0) -> Term:
    """Off-policy RL on demonstrations with π_ref = 1: −Σ f(π_θ) Â / Z."""
    return Term(
        "demonstrations", advantage, "one", shaping=shaping, loss_aggregation=loss_aggregation, coef=coef
    )


def _recipe(advantage: str, clip: str, loss_aggregation: str) -> tuple[Term, ...]:
    rollouts = Term("rollouts", advantage, "old", clip, loss_aggregation=loss_aggregation)
    return rollouts, off_policy(advantage, loss_aggregation)


LUFFY = Algorithm(
    name="luffy",
    title="learning to reason under off-policy guidance",
    formula="−(1/Z) [Σ_rollouts Σ_t ρ_it Â_i + Σ_t f(π_θ(τ*_t)) Â*],  f(p) = p/(p+0.1), "
    "Â = R − mean_{G ∪ demo}, Z = N·(group size)·C",
    source="arXiv 2504.14945, Eq 5 to 8; arXiv 2509.04419, Eq 20",
    gate="both",
    default=Recipe(
        _recipe("union_mean", "none", "union-seq-mean-token-sum-norm"), demonstration_in_group=True
    ),
    paper=Recipe(_recipe("union_std", "ppo", "union-token-mean"), demonstration_in_group=True),
    official=Recipe(
        _recipe("union_mean", "none", "official-sum"),
        entropy_coef=0.001,
        entropy_aggregation="official-micro-batch-mean",
        demonstration_in_group=True,
    ),
    notes="paper: with std and clip, Z = N·(tokens of the group).",
)
