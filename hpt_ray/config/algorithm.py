"""The keys of the section `algorithm`: which algorithm, and what to change in it."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_ray.config.fields import key


@dataclass
class AlgorithmConfig:
    """An algorithm, and what to change in it. None keeps the algorithm's own choice."""

    name: str = key(
        "hpt",
        "Algorithm: `sft`, `reinforce`, `rloo`, `ppo`, `grpo`, `dr_grpo`, `dapo`, "
        "`cispo`, `gspo`, `luffy`, `srft`, `srft_official`, `hpt`, `dft`, `iw_sft`, "
        "`chord_mu`, `chord_phi`, `rl_plus`, `superrl`, `opd`, `prefix_rft`, `uft`, `bread`; or `python:FILE:NAME`, "
        "one of yours, and the same for every part below and for `selection.gate`. See CONTRIBUTING.md.",
    )
    mode: str = key(
        "default",
        "`default` does not depend on layout; `paper`: the equations as printed; `official`: what the "
        "released HPT code computes (sft, grpo, luffy, srft, hpt).",
        choices=("default", "paper", "official"),
    )
    offline_branch: str | None = key(
        None, "hpt on demonstrations: `sft`, `off_policy` or `mix` (0.1 · sft + off_policy)."
    )
    rollout_coef: float = key(1.0, "ρ: multiplies every term on rollouts.")
    demo_coef: float = key(1.0, "λ: multiplies every term on demonstrations.")
    mu: list[float] = key(
        [],
        "μ multiplies demonstrations, 1 − μ rollouts: one number, or first, last and the steps over which it "
        "falls on half a cosine, as in `[0.9, 0.05, 200]`.",
    )
    prefix: list[float] = key(
        [],
        "p, the share of a demonstration that rollouts of `prefix_rft` and `uft` continue: one number, or first, last "
        "and steps as in `mu`.",
    )
    rollout_advantage: str | None = key(
        None,
        "Â on rollouts: `group_mean`, `group_std`, `leave_one_out`, `batch_std`, `reward`, `signed`, "
        "`correct`, `wrong`, `union_mean`, `union_std`, `gae`, `teacher`.",
    )
    rollout_denominator: str | None = key(None, "π_ref on rollouts: `current`, `old` or `sequence`.")
    rollout_clip: str | None = key(None, "m, the stabilisation mask on rollouts: `none`, `ppo` or `cispo`.")
    rollout_shaping: str | None = key(
        None, "s on rollouts: `none`, `luffy`, `focal`, `low_entropy`, `high_entropy`, `top_entropy`."
    )
    rollout_loss_aggregation: str | None = key(
        None,
        "Z of rollouts: `seq-mean-token-sum-norm`, `seq-mean-token-mean`, `seq-mean-token-sum`, `token-mean`, "
        "`mixed-token-mean`, `group-seq-mean-token-sum-norm`, `union-seq-mean-token-sum-norm`, `union-token-mean`, "
        "`official-sum`, `official-micro-batch-mean`.",
    )
    demo_advantage: str | None = key(
        None,
        "Â on demonstrations: `one`, `reward`, `signed`, `correct`, `wrong`, `union_mean`, `union_std`, `continued`.",
    )
    demo_denominator: str | None = key(
        None, "π_ref on demonstrations: `current`, `one`, `mixture` or `frozen`."
    )
    demo_clip: str | None = key(None, "m on demonstrations: `none`; with `frozen` also the others.")
    demo_shaping: str | None = key(None, "s on demonstrations: the names of `rollout_shaping`.")
    demo_loss_aggregation: str | None = key(None, "Z of demonstrations: the names of rollouts.")
    length_constant: float | None = key(
        None, "C of `seq-mean-token-sum-norm`; default: `data.max_response_tokens`.", minimum=None
    )
    clip_low: float | None = key(None, "ε_low of `ppo` and `cispo`; 1 or more: no lower bound.")
    clip_high: float | None = key(None, "ε_high of `ppo` and `cispo`.")
    shaping_gamma: float | None = key(
        None,
        "γ of the shapings `luffy`, f(p) = p/(p+γ), and `focal`, (1−p)^γ; the share of a sample's tokens that "
        "`top_entropy` keeps.",
    )
    discount: float = key(1.0, "γ of `gae`.")
    gae_lambda: float = key(0.95, "λ of `gae`.")
    entropy_coef: float | None = key(None, "Weight of the entropy bonus.")
    kl_coef: float = key(0.0, "Weight of KL(π_θ‖frozen reference) on rollouts; 0: no reference is started.")
    kl_estimator: str = key("k3", "Estimator of that KL.", choices=("k1", "k2", "k3"))
    kl_in: str = key("loss", "Where it acts.", choices=("loss", "reward"))
    correction: str = key(
        "none",
        "Bounds π_θ/π_old where sampler and learner disagree: `token_truncate`, `token_mask`, "
        "`sequence_truncate`, `sequence_mask`.",
    )
    correction_low: float = key(0.5, "Lower bound of the two masks.")
    correction_high: float = key(2.0, "Upper bound of corrections.")
