"""REINFORCE and RLOO: on-policy samples weighted by a reward or by a leave-one-out reward.

Both take π_ref = π_θ: nothing is re-weighted, so they are exact for fresh rollouts only (one update
per step).
"""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term

REINFORCE = Algorithm(
    name="reinforce",
    title="REINFORCE with rewards of ±1",
    formula="−(1/Nn) Σ_i (2R_i − 1) Σ_t log π_θ(τ_it)",
    source="arXiv 2509.04419, Table 1; Williams 1992; arXiv 2402.14740",
    gate="rollouts",
    default=Recipe(
        (Term("rollouts", advantage="signed", denominator="current", loss_aggregation="seq-mean-token-sum"),)
    ),
)

RLOO = Algorithm(
    name="rloo",
    title="REINFORCE leave-one-out",
    formula="−(1/Nn) Σ_i (R_i − mean_{j≠i} R_j) Σ_t log π_θ(τ_it)",
    source="arXiv 2402.14740, Eq 8",
    gate="rollouts",
    default=Recipe(
        (
            Term(
                "rollouts",
                advantage="leave_one_out",
                denominator="current",
                loss_aggregation="seq-mean-token-sum",
            ),
        )
    ),
)
