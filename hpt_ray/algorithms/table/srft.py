"""SRFT: supervised and reinforcement terms at once, balanced by the policy's entropy.

H is the mean token entropy of a sample, detached.
"""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term
from hpt_ray.algorithms.table.luffy import off_policy


def _recipe(demo_term: Term, sft_aggregation: str, rollout_loss_aggregation: str) -> tuple[Term, ...]:
    sft = Term(
        "demonstrations", "one", "current", shaping="low_entropy", loss_aggregation=sft_aggregation, coef=0.5
    )
    right = Term(
        "rollouts",
        "correct",
        "current",
        shaping="high_entropy",
        loss_aggregation=rollout_loss_aggregation,
        coef=0.1,
    )
    wrong = Term("rollouts", "wrong", "current", loss_aggregation=rollout_loss_aggregation)
    return right, wrong, sft, demo_term


_OFFICIAL = Recipe(
    _recipe(off_policy("union_mean", "official-sum"), "official-micro-batch-mean", "official-sum"),
    entropy_coef=0.001,
    entropy_aggregation="official-micro-batch-mean",
    demonstration_in_group=True,
)

SRFT = Algorithm(
    name="srft",
    title="supervised reinforcement fine-tuning",
    formula="mean_rollouts [−0.1·e^H·1[R=1] log π_θ + 1[R=0] log π_θ] "
    "+ mean_demos [−0.5·e^(−H) log π_θ − Â π_θ],  Â = (R − mean_{G ∪ demo})/(std_{G ∪ demo} + 1e-6)",
    source="arXiv 2506.19767, §4; arXiv 2509.04419, Eq 19",
    gate="both",
    default=Recipe(
        _recipe(
            off_policy("union_std", "seq-mean-token-mean", shaping="none"),
            "seq-mean-token-mean",
            "seq-mean-token-mean",
        )
    ),
    official=_OFFICIAL,
    notes="Means are over samples of token means. Entropy weights are per sample, whatever the packing.",
)

SRFT_OFFICIAL = Algorithm(
    name="srft_official",
    title="SRFT as the official HPT code runs it",
    formula="(1/8C) Σ_rollouts [−0.1·e^H·1[R=1] log π_θ + 1[R=0] log π_θ] − (1/8C) Σ_demos Â f(π_θ) "
    "+ (1/8) Σ_micro_batches mean_demo-tokens [−0.5·e^(−H) log π_θ],  "
    "Â = R − mean_{G ∪ demo}, f(p) = p/(p+0.1)",
    source="github.com/TsinghuaC3I/Unify-Post-Training at ae332f5 (mix_actor.py, train_srft.sh)",
    gate="both",
    default=_OFFICIAL,
    official=_OFFICIAL,
)
