"""PPO with a critic: per-token advantages from GAE, and the clipped ratio."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term

PPO = Algorithm(
    name="ppo",
    title="proximal policy optimization",
    formula="−(1/Nn) Σ_i (1/L_i) Σ_t min(ρ_it Â_it, clip(ρ_it, 1−ε, 1+ε) Â_it),  Â from GAE, ε = 0.2",
    source="arXiv 1707.06347, Eq 7; arXiv 1506.02438, Eq 16; arXiv 2509.04419, Eq 16",
    gate="rollouts",
    default=Recipe(
        (
            Term(
                "rollouts",
                advantage="gae",
                denominator="old",
                clip="ppo",
                loss_aggregation="seq-mean-token-mean",
            ),
        )
    ),
    notes="The critic has its own clipped value loss; discount = 1 and gae_lambda = 0.95.",
)
