"""GSPO: one importance ratio per sequence, the geometric mean of the tokens' ratios."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term

GSPO = Algorithm(
    name="gspo",
    title="group sequence policy optimization",
    formula="−(1/Nn) Σ_i min(s_i Â_i, clip(s_i, 1−3e-4, 1+4e-4) Â_i),  s_i = exp((1/L_i) Σ_t log ρ_it), "
    "Â = (R − mean_G)/(std_G + 1e-6)",
    source="arXiv 2507.18071, Eq 5 to 7 and §5.1 (clip range)",
    gate="rollouts",
    default=Recipe(
        (
            Term(
                "rollouts",
                advantage="group_std",
                denominator="sequence",
                clip="ppo",
                loss_aggregation="seq-mean-token-mean",
            ),
        ),
        clip_low=3e-4,
        clip_high=4e-4,
    ),
)
