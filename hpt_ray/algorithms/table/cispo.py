"""CISPO: the importance weight is capped and detached, so that no token loses its gradient."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term

CISPO = Algorithm(
    name="cispo",
    title="clipped importance-sampling-weight policy optimization",
    formula="−(1/ΣL) Σ_i Σ_t sg(clip(ρ_it, 1−ε_low, 1+ε_high)) Â_i log π_θ(τ_it),  "
    "Â = (R − mean_G)/(std_G + 1e-6), ε_low = 1 (no lower cap), ε_high = 0.2",
    source="arXiv 2506.13585, Eq 4 and 5 (ε_high is not given there)",
    gate="rollouts",
    default=Recipe(
        (
            Term(
                "rollouts",
                advantage="group_std",
                denominator="old",
                clip="cispo",
                loss_aggregation="token-mean",
            ),
        ),
        clip_low=1.0,
    ),
)
