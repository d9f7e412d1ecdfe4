"""Keys of what trains and scores: learner, critic, reference policy. They are sections of `config.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpt_ray.config.fields import key, section


@dataclass
class LoRAConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685), which train in the place of the weights.

    See docs/placement.md.
    """

    rank: int = key(0, "r of the adapters; 0: there are none, and all weights train.")
    alpha: float = key(32.0, "α: an adapter adds α/r · B·A to its weight.")
    target_modules: list[str] = key(
        ["all-linear"],
        "Linear layers that get one, by the end of their names, as in `[q_proj, v_proj]`; `all-linear`: all but the "
        "output layer.",
    )


@dataclass
class LearnerConfig:
    """The DeepSpeed ranks and the optimizer."""

    num_ranks: int = key(1, "Learner processes.", minimum=1)
    num_cpus: float = key(1.0, "CPU cores reserved for one rank.")
    num_gpus: float = key(0.0, "GPUs reserved for one rank (0: gloo on CPUs).")
    zero_stage: int = key(
        1,
        "DeepSpeed ZeRO stage: 1 shards optimizer state, 2 gradients too (exchanged in every micro-batch), 3 "
        "weights too, 0 nothing.",
    )
    sequence_parallel: int = key(1, "Ranks that share each micro-batch; see docs/placement.md.", minimum=1)
    offload_optimizer: bool = key(False, "Keep optimizer state in host memory (ZeRO 1 to 3).")
    learning_rate: float = key(5e-6, "Peak learning rate of AdamW.")
    schedule: str = key(
        "constant",
        "After warm-up: hold, or go down to `min_lr_ratio`.",
        choices=("constant", "linear", "cosine"),
    )
    warmup_steps: int = key(0, "Optimizer steps of linear warm-up.")
    min_lr_ratio: float = key(0.1, "Last learning rate over the peak (linear, cosine).")
    betas: list[float] = key([0.9, 0.999], "β₁ and β₂ of AdamW.", minimum=None)
    weight_decay: float = key(0.01, "Decoupled weight decay.")
    base_pull: float = key(
        0.0,
        "κ: pull towards the weights of `model.path` after each update, θ ← θ − lr·κ·(θ − θ₀), against "
        "forgetting; 0: none. See docs/methods.md.",
    )
    max_grad_norm: float = key(1.0, "Clip the global gradient norm to this; 0 for no clip.")
    skip_grad_norm: float = key(0.0, "Skip an update whose unclipped gradient norm is above this; 0: none.")
    max_skipped_updates: int = key(
        10, "Updates skipped in a row (`skip_grad_norm`, or not finite) before the run ends."
    )
    recompute_old_logprobs: bool = key(
        False,
        "Take log π_old from the learner before the update, not from the sampler. Costs a forward pass if a "
        "step has several updates.",
    )
    max_restarts: int = key(3, "Most restarts of the ranks in a row without a checkpoint.")
    gradient_checkpointing: bool = key(False, "Recompute activations in the backward pass.")
    offload_activations: bool = key(
        False, "With `gradient_checkpointing`: what each layer starts from is kept in host memory (GPUs)."
    )
    deepspeed: dict[str, Any] = key({}, "More DeepSpeed configuration, as DeepSpeed names it.")
    timeout_s: float = key(1800.0, "Limit for one update.", minimum=1)
    lora: LoRAConfig = section(LoRAConfig)


@dataclass
class CriticConfig:
    """PPO's value model; started only when the advantage asks for values.

    Other settings are the learner's.
    """

    learning_rate: float = key(1e-5, "Peak learning rate; warm-up and schedule as the learner's.")
    value_clip: float = key(0.2, "ε: how far a value may move from that of its advantage.")
    num_ranks: int = key(1, "Critic processes.", minimum=1)
    num_cpus: float = key(1.0, "CPU cores reserved for one rank.")
    num_gpus: float = key(0.0, "GPUs reserved for one rank (0: gloo on CPUs).")


@dataclass
class ReferenceConfig:
    """The frozen policy of KL terms; started only when a term asks for it."""

    path: str | None = key(None, "Model folder; default: the policy as training starts.")
    num_workers: int = key(1, "Scoring processes.", minimum=1)
    num_cpus: float = key(1.0, "CPU cores reserved for one process.")
    num_gpus: float = key(0.0, "GPUs reserved for one process.")
