"""The figures that are lines over steps: one row each. A metric becomes visible by being named here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lines:
    """A figure of lines over steps. `metrics`: name at the line → metric, or a pattern with one group."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    share: bool | None = False  # None: where all values are between 0 and 1
    log: bool = False
    smooth: bool = True
    caption: str = ""


LINES: dict[str, Lines] = {
    "reward": Lines("Reward", "mean score of the graded rollouts", {"": "reward/mean"}),
    "offline_ratio": Lines(
        "Offline ratio",
        "share that trains on demonstrations",
        {
            "of prompts": "selection/demo_prompt_ratio",
            "by weight": "selection/demo_share",
            "of rows": "selection/demo_sample_ratio",
        },
        share=True,
    ),
    "entropy": Lines("Entropy", "nats per response token, of what trained", {"": "policy/entropy"}),
    "length": Lines("Response length", "mean tokens of a rollout", {"": "rollout/length_mean"}),
    "truncated": Lines(
        "Cut answers", "rollouts that did not end their turn", {"": "rollout/truncated_ratio"}, share=True
    ),
    "demo_loss": Lines(
        "Loss on demonstrations",
        "nats per token, before the update",
        {"trained on": "learner/demo_loss", "": r"eval/([^/]+)/demonstration_loss"},
    ),
    "grad_norm": Lines("Gradient norm", "global, before clipping", {"": "optim/grad_norm"}),
    "lr": Lines("Learning rate", "of the last update of the step", {"": "optim/lr"}, smooth=False),
    "loss": Lines("Loss terms", "nats", {"": r"loss/(.+)"}),
    "logprob_gap": Lines(
        "Sampler against learner",
        "|Δ log π| on rollout tokens, nats",
        {"mean": "policy/logprob_gap_mean", "largest": "policy/logprob_gap_max"},
        log=True,
    ),
    "kl": Lines(
        "Distance of the policy",
        "KL, nats per token",
        {"from sampler": "policy/kl_old", "from reference": "policy/kl_ref"},
    ),
    "clipped": Lines(
        "Clipped and corrected",
        "share of rollout tokens",
        {"clipped": "policy/clip_share", "corrected": "policy/correction_share"},
    ),
    "critic": Lines("Critic", "score", {"value": "critic/value_mean", "return": "critic/return_mean"}),
    "explained_variance": Lines(
        "Critic: explained variance", "1 is perfect, 0 a constant", {"": "critic/explained_variance"}
    ),
    "off_policy_steps": Lines(
        "Staleness", "versions behind the learner, mean", {"": "rollout/off_policy_steps_mean"}
    ),
    "busy": Lines(
        "Busy and overlapping",
        "share of a step's time",
        {
            "engines": "rollout/busy_share",
            "learner": "learner/busy_share",
            "both": "time/overlap_share",
            "neither": "time/bubble_share",
        },
        share=True,
    ),
    "throughput": Lines(
        "Throughput",
        "tokens per second",
        {"sampled": "rollout/tokens_per_s", "trained": "learner/tokens_per_s"},
    ),
    "memory": Lines(
        "Memory",
        "MiB of the largest process of its kind",
        {"driver": "memory/driver_mb", "learner": "memory/learner_mb", "engine": "memory/rollout_mb"},
        smooth=False,
    ),
}
