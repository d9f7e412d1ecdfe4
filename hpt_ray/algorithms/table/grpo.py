"""GRPO and its two close relatives: group-relative advantages with PPO's clipped ratio."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term


def clipped(advantage: str, loss_aggregation: str, clip: str = "ppo") -> Term:
    """ρ Â on rollouts, clipped like PPO."""
    return Term("rollouts", advantage, denominator="old", clip=clip, loss_aggregation=loss_aggregation)


GRPO = Algorithm(
    name="grpo",
    title="group relative policy optimization",
    formula="−(1/Nn) Σ_i (1/L_i) Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  "
    "Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2",
    source="arXiv 2402.03300, Eq 3 (KL: kl_coef); arXiv 2509.04419, Eq 18",
    gate="rollouts",
    default=Recipe((clipped("group_std", "seq-mean-token-mean"),)),
    official=Recipe(
        (clipped("group_mean", "official-sum", clip="none"),),
        entropy_coef=0.001,
        entropy_aggregation="official-micro-batch-mean",
    ),
    notes="official: the HPT code with its gate shut; no std, no clip, summed over samples / (8·C).",
)

DR_GRPO = Algorithm(
    name="dr_grpo",
    title="GRPO done right",
    formula="−(1/NnC) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  Â = R − mean_G, ε = 0.2",
    source="arXiv 2503.20783, §3.2; C is its code's generation budget",
    gate="rollouts",
    default=Recipe((clipped("group_mean", "seq-mean-token-sum-norm"),)),
)

DAPO = Algorithm(
    name="dapo",
    title="decoupled clip and dynamic sampling policy optimization",
    formula="−(1/ΣL) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 0.8, 1.28) Â_i),  Â = (R − mean_G)/(std_G + 1e-6), "
    "groups with differing rewards",
    source="arXiv 2503.14476, Eq 8 to 12",
    gate="rollouts",
    default=Recipe((clipped("group_std", "mixed-token-mean"),), clip_high=0.28),
    notes="Groups of equal rewards count neither in the sum nor in ΣL. Sampling more is selection's task,\n"
    "overlong reward shaping the reward's.",
)
