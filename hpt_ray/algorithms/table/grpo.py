"""GRPO and its two close relatives: group-relative advantages with PPO's clipped ratio."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term


def clipped(advantage: str, normalizer: str, mask: str = "clip") -> Term:
    """ρ Â on rollouts, clipped like PPO."""
    return Term("rollouts", advantage, denominator="old", mask=mask, normalizer=normalizer)


GRPO = Algorithm(
    name="grpo",
    title="group relative policy optimization",
    formula="−(1/Nn) Σ_i (1/L_i) Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  "
    "Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2",
    source="arXiv 2402.03300, Eq 3 (KL: kl_coef); arXiv 2509.04419, Eq 18",
    gate="rollouts",
    default=Recipe((clipped("group_std", "row_mean"),)),
    official=Recipe(
        (clipped("group_mean", "official_sum", mask="none"),),
        entropy_coef=0.001,
        entropy_normalizer="official_microbatch_mean",
    ),
    notes="official: the HPT code with its gate shut; no std, no clip, summed over rows / (8·C).",
)

DR_GRPO = Algorithm(
    name="dr_grpo",
    title="GRPO done right",
    formula="−(1/NnC) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  Â = R − mean_G, ε = 0.2",
    source="arXiv 2503.20783, §3.2; C is its code's generation budget",
    gate="rollouts",
    default=Recipe((clipped("group_mean", "constant"),)),
)

DAPO = Algorithm(
    name="dapo",
    title="decoupled clip and dynamic sampling policy optimization",
    formula="−(1/ΣL) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 0.8, 1.28) Â_i),  Â = (R − mean_G)/(std_G + 1e-6), "
    "groups with differing rewards",
    source="arXiv 2503.14476, Eq 8 to 12",
    gate="rollouts",
    default=Recipe((clipped("group_std", "mixed_token_mean"),), clip_high=0.28),
    notes="Groups of equal rewards count neither in the sum nor in ΣL. Sampling more is selection's task,\n"
    "overlong reward shaping the reward's.",
)
