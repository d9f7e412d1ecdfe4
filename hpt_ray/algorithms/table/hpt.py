"""HPT: per prompt, RL on the rollouts where the policy can solve it, else the demonstration.

Modes differ in what the paper prints, what its code runs, and what does not depend on layout:

    default   R − mean, no clip, Z = N·n·C;               demonstrations: mean per demonstration
    paper     (R − mean)/std, clip 0.2, Z = N·n;          demonstrations: mean per demonstration
    official  R − mean, no clip, summed / (8·C);          demonstrations: mean per virtual micro-batch;
              entropy bonus 0.001 over all tokens of a micro-batch

The offline branch of the paper's ablation (its Table 5): `sft`; `off_policy` (LUFFY's shaped RL with
Â = R(τ*)); `mix` (0.1 · SFT + 1.0 · off-policy).
"""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term
from hpt_ray.algorithms.table.grpo import clipped
from hpt_ray.algorithms.table.luffy import off_policy
from hpt_ray.algorithms.table.sft import nll


def _offline(sft_aggregation: str, rl_aggregation: str) -> dict[str, tuple[Term, ...]]:
    rl = off_policy("reward", rl_aggregation)
    return {"off_policy": (rl,), "mix": (nll(sft_aggregation, coef=0.1), rl)}


HPT = Algorithm(
    name="hpt",
    title="hybrid post-training",
    formula="α·[−(ρ/NnC) Σ_i Σ_t ρ_it (R_i − mean_G)] + β·[−(λ/NL) Σ_t log π_θ(τ*_t)],  "
    "α = 1[P > γ], β = 1[P ≤ γ]",
    source="arXiv 2509.04419, Eq 10 to 13; official code at ae332f5",
    gate="switch",
    default=Recipe(
        (clipped("group_mean", "seq-mean-token-sum-norm", clip="none"), nll("seq-mean-token-mean")),
        offline=_offline("seq-mean-token-mean", "seq-mean-token-sum-norm"),
    ),
    paper=Recipe(
        (clipped("group_std", "seq-mean-token-sum"), nll("seq-mean-token-mean")),
        offline=_offline("seq-mean-token-mean", "seq-mean-token-mean"),
    ),
    official=Recipe(
        (clipped("group_mean", "official-sum", clip="none"), nll("official-micro-batch-mean")),
        entropy_coef=0.001,
        entropy_aggregation="official-micro-batch-mean",
        offline=_offline("official-micro-batch-mean", "official-sum"),
    ),
    notes="ρ = rollout_coef, λ = demo_coef, C = length_constant.",
)
