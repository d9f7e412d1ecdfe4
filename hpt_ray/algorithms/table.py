"""The algorithms on one page: which parts of c = m · Â · s · π_θ/π_ref each one takes, as in the paper's Table 1.

A term is −Σ sg(c)·log π_θ / Z over one stream: m the stabilisation mask, π_ref the reference policy, Â the
advantage, s the factor of the likelihood term, Z the loss aggregation. The gate says which stream trains.

algorithm      on       m      π_ref     Â              s             Z                              gate
sft            demo     none   current   one            none          seq-mean-token-mean            demonstrations
reinforce      rollout  none   current   signed         none          seq-mean-token-sum             rollouts
rloo           rollout  none   current   leave_one_out  none          seq-mean-token-sum             rollouts
ppo            rollout  ppo    old       gae            none          seq-mean-token-mean            rollouts
grpo           rollout  ppo    old       group_std      none          seq-mean-token-mean            rollouts
dr_grpo        rollout  ppo    old       group_mean     none          seq-mean-token-sum-norm        rollouts
dapo           rollout  ppo    old       group_std      none          mixed-token-mean               rollouts
cispo          rollout  cispo  old       group_std      none          token-mean                     rollouts
gspo           rollout  ppo    sequence  group_std      none          seq-mean-token-mean            rollouts
luffy          rollout  none   old       union_mean     none          union-seq-mean-token-sum-norm  both
               demo     none   one       union_mean     luffy         union-seq-mean-token-sum-norm
srft           rollout  none   current   correct        high_entropy  seq-mean-token-mean            both
               rollout  none   current   wrong          none          seq-mean-token-mean
               demo     none   current   one            low_entropy   seq-mean-token-mean
               demo     none   one       union_std      none          seq-mean-token-mean
srft_official  rollout  none   current   correct        high_entropy  official-sum                   both
               rollout  none   current   wrong          none          official-sum
               demo     none   current   one            low_entropy   official-micro-batch-mean
               demo     none   one       union_mean     luffy         official-sum
hpt            rollout  none   old       group_mean     none          seq-mean-token-sum-norm        switch
               demo     none   current   one            none          seq-mean-token-mean
superrl        rollout  ppo    old       group_std      none          seq-mean-token-mean            switch
               demo     none   current   one            none          seq-mean-token-mean
dft            demo     none   one       one            none          seq-mean-token-mean            demonstrations
iw_sft         demo     cispo  frozen    one            none          token-mean                     demonstrations
chord_mu       rollout  ppo    old       group_std      none          token-mean                     both
               demo     none   current   one            none          token-mean
chord_phi      rollout  ppo    old       group_std      none          token-mean                     both
               demo     none   one       one            focal         token-mean
rl_plus        rollout  none   old       union_mean     none          union-seq-mean-token-sum-norm  both
               demo     none   mixture   union_mean     focal         union-seq-mean-token-sum-norm
opd            rollout  none   old       teacher        none          token-mean                     rollouts
prefix_rft     rollout  ppo    old       group_mean     none          seq-mean-token-sum-norm        prefixes
               demo     none   current   continued      top_entropy   group-seq-mean-token-sum-norm
uft            rollout  ppo    old       group_std      none          token-mean                     prefixes
               demo     none   current   one            none          token-mean
bread          rollout  ppo    old       group_std      none          seq-mean-token-mean            prefixes

This is what `python -m hpt_ray.cli.explain --all` prints, and a test compares the two. Shown are the default
recipes; `mode: paper` and `mode: official` are below, at each record.
"""

from __future__ import annotations

from hpt_ray.algorithms.base import (
    Algorithm,
    Prefixes,
    Recipe,
    Term,
    imitation,
    nll,
    off_policy,
    official,
    on_demos,
    on_rollouts,
)
from hpt_ray.algorithms.outside import Table


def _offline(sft_aggregation: str, rl_aggregation: str) -> dict[str, tuple[Term, ...]]:
    """The branches of HPT's Table 5 beside `sft`: LUFFY's shaped RL with Â = R(τ*), and 0.1 · SFT + that."""
    rl = off_policy("reward", rl_aggregation)
    return {"off_policy": (rl,), "mix": (nll(sft_aggregation, coef=0.1), rl)}


_SRFT_OFFICIAL = official(
    on_rollouts("none", "current", "correct", "official-sum", shaping="high_entropy", coef=0.1),
    on_rollouts("none", "current", "wrong", "official-sum"),
    nll("official-micro-batch-mean", shaping="low_entropy", coef=0.5),
    off_policy("union_mean", "official-sum"),
    demonstration_in_group=True,
)

_TABLE = (
    Algorithm(
        name="sft",
        title="supervised fine-tuning",
        formula="−(1/N) Σ_demos (1/L) Σ_t log π_θ(τ*_t)",
        source="arXiv 2509.04419, Eq 12 (default), Eq 14 without length division (paper)",
        gate="demonstrations",
        default=Recipe((nll("seq-mean-token-mean"),)),
        paper=Recipe((nll("seq-mean-token-sum"),)),
        official=official(nll("official-micro-batch-mean")),
    ),
    # ---- on-policy: π_ref = π_θ re-weights nothing, so these are exact for fresh rollouts only (one update a step)
    Algorithm(
        name="reinforce",
        title="REINFORCE with rewards of ±1",
        formula="−(1/Nn) Σ_i (2R_i − 1) Σ_t log π_θ(τ_it)",
        source="arXiv 2509.04419, Table 1; Williams 1992; arXiv 2402.14740",
        gate="rollouts",
        default=Recipe((on_rollouts("none", "current", "signed", "seq-mean-token-sum"),)),
    ),
    Algorithm(
        name="rloo",
        title="REINFORCE leave-one-out",
        formula="−(1/Nn) Σ_i (R_i − mean_{j≠i} R_j) Σ_t log π_θ(τ_it)",
        source="arXiv 2402.14740, Eq 8",
        gate="rollouts",
        default=Recipe((on_rollouts("none", "current", "leave_one_out", "seq-mean-token-sum"),)),
    ),
    # ---- with the ratio π_θ/π_old, held back by a stabilisation mask
    Algorithm(
        name="ppo",
        title="proximal policy optimization",
        formula="−(1/Nn) Σ_i (1/L_i) Σ_t min(ρ_it Â_it, clip(ρ_it, 1−ε, 1+ε) Â_it),  Â from GAE, ε = 0.2",
        source="arXiv 1707.06347, Eq 7; arXiv 1506.02438, Eq 16; arXiv 2509.04419, Eq 16",
        gate="rollouts",
        default=Recipe((on_rollouts("ppo", "old", "gae", "seq-mean-token-mean"),)),
        notes="The critic has its own clipped value loss; discount = 1 and gae_lambda = 0.95.",
    ),
    Algorithm(
        name="grpo",
        title="group relative policy optimization",
        formula="−(1/Nn) Σ_i (1/L_i) Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  "
        "Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2",
        source="arXiv 2402.03300, Eq 3 (KL: kl_coef); arXiv 2509.04419, Eq 18",
        gate="rollouts",
        default=Recipe((on_rollouts("ppo", "old", "group_std", "seq-mean-token-mean"),)),
        official=official(on_rollouts("none", "old", "group_mean", "official-sum")),
        notes="official: the HPT code with its gate shut; no std, no clip, summed over samples / (8·C).",
    ),
    Algorithm(
        name="dr_grpo",
        title="GRPO done right",
        formula="−(1/NnC) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  Â = R − mean_G, ε = 0.2",
        source="arXiv 2503.20783, §3.2; C is its code's generation budget",
        gate="rollouts",
        default=Recipe((on_rollouts("ppo", "old", "group_mean", "seq-mean-token-sum-norm"),)),
    ),
    Algorithm(
        name="dapo",
        title="decoupled clip and dynamic sampling policy optimization",
        formula="−(1/ΣL) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 0.8, 1.28) Â_i),  Â = (R − mean_G)/(std_G + 1e-6), "
        "groups with differing rewards",
        source="arXiv 2503.14476, Eq 8 to 12",
        gate="rollouts",
        default=Recipe((on_rollouts("ppo", "old", "group_std", "mixed-token-mean"),), clip_high=0.28),
        notes="Groups of equal rewards count neither in the sum nor in ΣL. selection.max_num_gen_batches above 1 has\n"
        "others sampled in their place (dynamic sampling, Eq 11).\n"
        "Overlong reward shaping (Eq 13) is the reward's: reward.terms.overlong.",
    ),
    # The importance weight is capped and detached, so that no token loses its gradient.
    Algorithm(
        name="cispo",
        title="clipped importance-sampling-weight policy optimization",
        formula="−(1/ΣL) Σ_i Σ_t sg(clip(ρ_it, 1−ε_low, 1+ε_high)) Â_i log π_θ(τ_it),  "
        "Â = (R − mean_G)/(std_G + 1e-6), ε_low = 1 (no lower cap), ε_high = 0.2",
        source="arXiv 2506.13585, Eq 4 and 5 (ε_high is not given there)",
        gate="rollouts",
        default=Recipe((on_rollouts("cispo", "old", "group_std", "token-mean"),), clip_low=1.0),
    ),
    # One importance ratio per sequence, the geometric mean of the tokens' ratios.
    Algorithm(
        name="gspo",
        title="group sequence policy optimization",
        formula="−(1/Nn) Σ_i min(s_i Â_i, clip(s_i, 1−3e-4, 1+4e-4) Â_i),  s_i = exp((1/L_i) Σ_t log ρ_it), "
        "Â = (R − mean_G)/(std_G + 1e-6)",
        source="arXiv 2507.18071, Eq 5 to 7 and §5.1 (clip range)",
        gate="rollouts",
        default=Recipe(
            (on_rollouts("ppo", "sequence", "group_std", "seq-mean-token-mean"),),
            clip_low=3e-4,
            clip_high=4e-4,
        ),
    ),
    # ---- rollouts and demonstrations
    # One demonstration and n−1 rollouts form one group; the demonstration is off-policy RL.
    Algorithm(
        name="luffy",
        title="learning to reason under off-policy guidance",
        formula="−(1/Z) [Σ_rollouts Σ_t ρ_it Â_i + Σ_t f(π_θ(τ*_t)) Â*],  f(p) = p/(p+0.1), "
        "Â = R − mean_{G ∪ demo}, Z = N·(group size)·C",
        source="arXiv 2504.14945, Eq 5 to 8; arXiv 2509.04419, Eq 20",
        gate="both",
        default=Recipe(
            (
                on_rollouts("none", "old", "union_mean", "union-seq-mean-token-sum-norm"),
                off_policy("union_mean", "union-seq-mean-token-sum-norm"),
            ),
            demonstration_in_group=True,
        ),
        paper=Recipe(
            (
                on_rollouts("ppo", "old", "union_std", "union-token-mean"),
                off_policy("union_std", "union-token-mean"),
            ),
            demonstration_in_group=True,
        ),
        official=official(
            on_rollouts("none", "old", "union_mean", "official-sum"),
            off_policy("union_mean", "official-sum"),
            demonstration_in_group=True,
        ),
        notes="paper: with std and clip, Z = N·(tokens of the group).",
    ),
    # Supervised and reinforcement terms at once, balanced by the policy's entropy: H is the mean token entropy of a
    # sample, detached.
    Algorithm(
        name="srft",
        title="supervised reinforcement fine-tuning",
        formula="mean_rollouts [−0.1·e^H·1[R=1] log π_θ + 1[R=0] log π_θ] "
        "+ mean_demos [−0.5·e^(−H) log π_θ − Â π_θ],  Â = (R − mean_{G ∪ demo})/(std_{G ∪ demo} + 1e-6)",
        source="arXiv 2506.19767, §4; arXiv 2509.04419, Eq 19",
        gate="both",
        default=Recipe(
            (
                on_rollouts(
                    "none", "current", "correct", "seq-mean-token-mean", shaping="high_entropy", coef=0.1
                ),
                on_rollouts("none", "current", "wrong", "seq-mean-token-mean"),
                nll("seq-mean-token-mean", shaping="low_entropy", coef=0.5),
                off_policy("union_std", "seq-mean-token-mean", shaping="none"),
            )
        ),
        official=_SRFT_OFFICIAL,
        notes="Means are over samples of token means. Entropy weights are per sample, whatever the packing.",
    ),
    Algorithm(
        name="srft_official",
        title="SRFT as the official HPT code runs it",
        formula="(1/8C) Σ_rollouts [−0.1·e^H·1[R=1] log π_θ + 1[R=0] log π_θ] − (1/8C) Σ_demos Â f(π_θ) "
        "+ (1/8) Σ_micro_batches mean_demo-tokens [−0.5·e^(−H) log π_θ],  "
        "Â = R − mean_{G ∪ demo}, f(p) = p/(p+0.1)",
        source="github.com/TsinghuaC3I/Unify-Post-Training at ae332f5 (mix_actor.py, train_srft.sh)",
        gate="both",
        default=_SRFT_OFFICIAL,
        official=_SRFT_OFFICIAL,
    ),
    # Per prompt, RL on the rollouts where the policy can solve it, else the demonstration. The paper prints std, clip
    # and Z = N·n; its code runs without the first two and sums.
    Algorithm(
        name="hpt",
        title="hybrid post-training",
        formula="α·[−(ρ/NnC) Σ_i Σ_t ρ_it (R_i − mean_G)] + β·[−(λ/NL) Σ_t log π_θ(τ*_t)],  "
        "α = 1[P > γ], β = 1[P ≤ γ]",
        source="arXiv 2509.04419, Eq 10 to 13; official code at ae332f5",
        gate="switch",
        default=Recipe(
            (on_rollouts("none", "old", "group_mean", "seq-mean-token-sum-norm"), nll("seq-mean-token-mean")),
            offline=_offline("seq-mean-token-mean", "seq-mean-token-sum-norm"),
        ),
        paper=Recipe(
            (on_rollouts("ppo", "old", "group_std", "seq-mean-token-sum"), nll("seq-mean-token-mean")),
            offline=_offline("seq-mean-token-mean", "seq-mean-token-mean"),
        ),
        official=official(
            on_rollouts("none", "old", "group_mean", "official-sum"),
            nll("official-micro-batch-mean"),
            offline=_offline("official-micro-batch-mean", "official-sum"),
        ),
        notes="ρ = rollout_coef, λ = demo_coef, C = length_constant.",
    ),
    Algorithm(
        name="superrl",
        title="reinforcement learning with supervision",
        formula="α·[−(1/Nn) Σ_i (1/L_i) Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i)] + β·[−(1/NL) Σ_t log π_θ(τ*_t)],  "
        "α = 1[some R > 0], β = 1 − α, Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2",
        source="arXiv 2506.01096v2 (its fallback, with GRPO as the policy gradient)",
        gate="switch",
        default=Recipe(
            (on_rollouts("ppo", "old", "group_std", "seq-mean-token-mean"), nll("seq-mean-token-mean"))
        ),
        notes="Its fallback is the switch at selection.gamma = 0.",
    ),
    # ---- demonstrations weighed token by token, or response by response
    Algorithm(
        name="dft",
        title="dynamic fine-tuning",
        formula="−(1/N) Σ_demos (1/L) Σ_t sg(π_θ(τ*_t)) log π_θ(τ*_t)",
        source="arXiv 2508.05629, Eq 9: without length division (paper)",
        gate="demonstrations",
        default=Recipe((imitation("one", "seq-mean-token-mean"),)),
        paper=Recipe((imitation("one", "seq-mean-token-sum"),)),
    ),
    Algorithm(
        name="iw_sft",
        title="importance-weighted supervised fine-tuning",
        formula="−(1/ΣL) Σ_demos min(w, 16) Σ_t log π_θ(τ*_t),  w = sg(exp((1/L) Σ_t log π_θ(τ*_t)/π_frozen(τ*_t)))",
        source="arXiv 2507.12856; w as in github.com/emmyqin/iw_sft at 3686986 (over the sequence, temp = 1)",
        gate="demonstrations",
        default=Recipe((imitation("frozen", "token-mean", clip="cispo"),), clip_low=1.0, clip_high=15.0),
        notes="The frozen policy is reference.path, by default the model that training starts from.",
    ),
    # ---- one loss of rollouts and demonstrations, mixed by μ
    Algorithm(
        name="chord_mu",
        title="CHORD with a falling share of demonstrations",
        formula="(1−μ)·[−(1/ΣL) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i)] + μ·[−(1/ΣL) Σ_demos Σ_t log π_θ],  "
        "Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2, μ: 0.9 → 0.05 over 200 steps",
        source="arXiv 2508.11408 (CHORD-μ); github.com/modelscope/Trinity-RFT, examples/mix_chord at 0414330",
        gate="both",
        default=Recipe(
            (on_rollouts("ppo", "old", "group_std", "token-mean"), nll("token-mean")), mu=(0.9, 0.05, 200)
        ),
        notes="There demonstrations are of other prompts than rollouts; here both are of the same.",
    ),
    Algorithm(
        name="chord_phi",
        title="CHORD with demonstrations weighed by φ = p(1 − p)",
        formula="(1−μ)·[−(1/ΣL) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i)] "
        "+ μ·[−(1/ΣL) Σ_demos Σ_t sg(π_θ(1 − π_θ)) log π_θ],  "
        "Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2, μ = 0.1",
        source="arXiv 2508.11408 (CHORD-φ); github.com/modelscope/Trinity-RFT, examples/mix_chord at 0414330",
        gate="both",
        default=Recipe(
            (
                on_rollouts("ppo", "old", "group_std", "token-mean"),
                imitation("one", "token-mean", shaping="focal"),
            ),
            shaping_gamma=1.0,
            mu=(0.1, 0.1, 0),
        ),
        notes="φ is π_ref = 1, which gives p, times the factor 1 − p.",
    ),
    Algorithm(
        name="rl_plus",
        title="RL-PLUS: hybrid-policy optimization",
        formula="−(1/Z) [Σ_rollouts Σ_t ρ_it Â_i + Σ_t r_t Â* sg(1 − π_θ(τ*_t))^½],  "
        "r = 2π_θ/(π_ω + π_old), π_ω = (π_old + 1)/2, Â = R − mean_{G ∪ demo}, Z = N·(group size)·C",
        source="arXiv 2508.00222; numbers of github.com/YihongDong/RL-PLUS at 13318ff (train_RL-PLUS.sh)",
        gate="both",
        default=Recipe(
            (
                on_rollouts("none", "old", "union_mean", "union-seq-mean-token-sum-norm"),
                on_demos("none", "mixture", "union_mean", "union-seq-mean-token-sum-norm", shaping="focal"),
            ),
            shaping_gamma=0.5,
            demonstration_in_group=True,
        ),
        notes="π_old of a demonstration is the policy as the update begins: with updates_per_step above 1 it is\n"
        "newer than that of the rollouts.",
    ),
    # ---- a teacher in the place of a reward
    Algorithm(
        name="opd",
        title="on-policy distillation",
        formula="−(1/ΣL) Σ_i Σ_t ρ_it (log π_teacher(τ_it) − log π_old(τ_it)):  KL(π_θ‖π_teacher) of the next token",
        source="thinkingmachines.ai/blog/on-policy-distillation (2025), after arXiv 2306.13649",
        gate="rollouts",
        default=Recipe((on_rollouts("none", "old", "teacher", "token-mean"),)),
        notes="The teacher is reference.path, with the policy's tokenizer. Rewards are only reported.",
    ),
    # ---- rollouts that continue a prefix of the demonstration; L_i counts what they sampled
    Algorithm(
        name="prefix_rft",
        title="reinforcement fine-tuning with prefix sampling",
        formula="−(1/NnC) Σ_i Σ_t m_it min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  Â = R − mean_G, ε = 0.2, m = 0 on all "
        "but the fifth of a prefix with the highest entropy; p: 0.95 → 0.05 over 500 steps",
        source="arXiv 2507.01679, §3 and A.2; github.com/ZeroYuHuang/prefix_rft at 5f5d2a1",
        gate="prefixes",
        default=Recipe(
            (
                on_rollouts("ppo", "old", "group_mean", "seq-mean-token-sum-norm"),
                on_demos(
                    "none", "current", "continued", "group-seq-mean-token-sum-norm", shaping="top_entropy"
                ),
            ),
            shaping_gamma=0.2,
            prefixes=Prefixes("last", (0.95, 0.05, 500)),
        ),
        notes="π_old of a prefix is the policy as the update begins. The code takes the fifth of all prefixes of a\n"
        "micro-batch, here it is of each.",
    ),
    Algorithm(
        name="uft",
        title="unified fine-tuning",
        formula="−(1/ΣL) Σ_i Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i) − (β/Σk) Σ_prefixes Σ_t log π_θ(τ*_t),  "
        "Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2, β = 0.001, p: 0.95 → 0.05 over 300 steps of 500, then no prefix",
        source="arXiv 2505.16984, B.1; github.com/liumy2010/UFT at ad3c8ec",
        gate="prefixes",
        default=Recipe(
            (on_rollouts("ppo", "old", "group_std", "token-mean"), nll("token-mean", coef=0.001)),
            prefixes=Prefixes("all", (0.95, 0.05, 300)),
        ),
        notes="The paper's KL, also times β, is kl_coef = 0.001. Its code cuts a demonstration at sentences, here at\n"
        "tokens.",
    ),
    Algorithm(
        name="bread",
        title="branched rollouts from expert anchors",
        formula="−(1/Nn) Σ_i (1/L_i) Σ_t min(ρ_it Â_i, clip(ρ_it, 1−ε, 1+ε) Â_i),  "
        "Â = (R − mean_G)/(std_G + 1e-6), ε = 0.2, G drawn again after a prefix where all are wrong",
        source="arXiv 2506.17211 (abstract)",
        gate="prefixes",
        default=Recipe(
            (on_rollouts("ppo", "old", "group_std", "seq-mean-token-mean"),), prefixes=Prefixes("search")
        ),
        notes="The range of success that its search aims at could not be read: here it ends where some\n"
        "are right and some are wrong.",
    ),
)

ALGORITHMS: Table[Algorithm] = Table(Algorithm, {algorithm.name: algorithm for algorithm in _TABLE})
