"""The name, unit and meaning of every number in metrics.jsonl.

`METRICS` is the only list of names; docs/metrics.md is made from it by `python -m hpt_ray.observe.metrics`
(`--check` compares only). A name may hold a placeholder: `eval/<set>/mean` stands for one name per set.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpt_ray.config.docs import DOCS, write_or_check
from hpt_ray.observe.step_line import evaluation_means
from hpt_ray.types import Decision


@dataclass(frozen=True, slots=True)
class Metric:
    """One name of metrics.jsonl. `every_step` is False where a line may lack it."""

    name: str
    unit: str
    meaning: str
    every_step: bool = True


METRICS: tuple[Metric, ...] = (
    Metric("step", "steps", "Number of the step, from 1; 0 is the evaluation before training."),
    Metric("phase", "count", "Number of the phase, from 1; 1 in a run without phases.", False),
    Metric("weights/version", "count", "Version of the weights on the rollout workers after the step."),
    Metric("reward/mean", "score", "Mean score of the rollouts that have a reward and continue no prefix."),
    Metric("reward/prefix_mean", "score", "The same of those that continue a prefix of the demonstration.", False),
    Metric("reward/failure_share", "share",
           "Responses without a reward (outcome `error` or `timeout`); they do not train."),
    Metric("reward/outcome/<outcome>", "rollouts", "Rollouts whose grading came to this outcome.", False),
    Metric("reward/metric/<entry>", "any", "Mean of another entry of the reward function's dict.", False),
    Metric("selection/demo_share", "share",
           "Offline ratio, Σβ/Σ(α + β) over the step's prompts; with `switch` the share of prompts that trained "
           "on their demonstration."),
    Metric("selection/mu", "share", "μ, which multiplies demonstrations; 1 − μ multiplies rollouts.", False),
    Metric("selection/demo_prompt_ratio", "share", "Prompts that trained on their demonstration, at any weight."),
    Metric("selection/demo_sample_ratio", "share", "Training samples that are demonstrations, or prefixes of them."),
    Metric("selection/tokens_saved", "tokens",
           "Estimate of the tokens that early decisions saved, from the mean length of finished rollouts."),
    Metric("selection/reason/<reason>", "prompts", "Prompts that were decided for this reason.", False),
    Metric("policy/entropy", "nats/token",
           "Mean entropy of the policy on the response tokens it trained on, without rehearsal."),
    Metric("policy/logprob_gap_mean", "nats", "Mean |log π of the learner − log π of the sampler| on rollout tokens."),
    Metric("policy/logprob_gap_max", "nats", "Largest such gap."),
    Metric("policy/effective_sample_size", "share",
           "(Σw)²/(N Σw²) of w = π_θ/π_old over the N rollout tokens: 1 where learner and sampler agree.", False),
    Metric("policy/kl_old", "nats/token", "KL(π_old‖π_θ) on rollout tokens (k3 estimate).", False),
    Metric("policy/clip_share", "share", "Tokens whose ratio the mask clipped or capped.", False),
    Metric("policy/correction_share", "share", "Rollout tokens whose weight the correction changed.", False),
    Metric("policy/kl_ref", "nats/token", "KL from the frozen reference on rollout tokens (`kl_estimator`).", False),
    Metric("optim/base_distance", "share",
           "‖θ − θ₀‖/‖θ₀‖ after the last update, θ₀ being the base; with `learner.base_pull`.", False),
    Metric("learner/demo_loss", "nats/token", "Mean −log π on the demonstrations that trained.", False),
    Metric("learner/rehearsal_loss", "nats/token", "The same on the rows of `data.rehearsal`.", False),
    Metric("learner/skipped_samples", "samples", "Samples whose terms are all exactly zero, so never sent."),
    Metric("learner/skipped_updates", "updates", "Updates skipped: not finite, or above `learner.skip_grad_norm`."),
    Metric("learner/busy_share", "share", "Time of the step in which a learner rank computed, mean over ranks."),
    Metric("critic/value_loss", "score²", "Clipped value loss, mean over rollout tokens.", False),
    Metric("critic/value_mean", "score", "Mean value of rollout tokens, before the update.", False),
    Metric("critic/return_mean", "score", "Mean return G = Â + V of rollout tokens.", False),
    Metric("critic/explained_variance", "share", "1 − Var(G − V)/Var(G): 1 is a perfect critic, 0 a constant.", False),
    Metric("critic/skipped_updates", "updates", "The critic's updates that were skipped.", False),
    Metric("critic/grad_norm", "norm", "The critic's gradient norm before clipping.", False),
    Metric("loss/<term>", "nats",
           "A term of the loss in the last update; `total`: all of it. On rollouts its size says little.", False),
    Metric("rollout/length_mean", "tokens", "Mean length of a rollout, with the prefix that it continues."),
    Metric("rollout/prefix_ratio", "share", "Rollouts that continue a prefix of the demonstration.", False),
    Metric("rollout/prefix_length_mean", "tokens", "Mean length of these prefixes.", False),
    Metric("rollout/truncated_ratio", "share", "Rollouts that did not end their turn."),
    Metric("rollout/finish/<reason>", "rollouts", "Rollouts that ended for this reason.", False),
    Metric("rollout/busy_share", "share", "Time of the step in which an engine decoded, mean over workers."),
    Metric("rollout/off_policy_steps_mean", "versions",
           "Mean number of versions that rollouts started behind the learner's weights."),
    Metric("rollout/off_policy_steps/<versions>", "rollouts", "Rollouts that many versions behind.", False),
    Metric("rollout/tokens_per_s", "tokens/s",
           "Sampled tokens over `time/rollout_s`, or over `time/step_s` if sampled ahead."),
    Metric("learner/tokens_per_s", "tokens/s", "Trained tokens, prompts included, over `time/learner_s`."),
    Metric("optim/grad_norm", "norm", "Global gradient norm before clipping, of the last update of the step."),
    Metric("optim/lr", "rate", "Learning rate of the last update of the step."),
    Metric("run/resumed", "steps", "1 on the first step after the run went on from a checkpoint.", False),
    Metric("memory/driver_mb", "MiB", "Memory of the driver's process."),
    Metric("memory/learner_mb", "MiB", "Memory of the largest learner rank's process.", False),
    Metric("memory/rollout_mb", "MiB", "Memory of the largest rollout worker's process.", False),
    Metric("memory/learner_gpu_mb", "MiB", "Most GPU memory that PyTorch held on a learner rank, so far.", False),
    Metric("time/step_s", "seconds", "Wall time of the step, without evaluation and checkpoint."),
    Metric("time/rollout_s", "seconds", "From the first request to the last graded rollout."),
    Metric("time/learner_s", "seconds", "From the first micro-batch to the optimizer step, summed over updates."),
    Metric("time/overlap_share", "share", "Time of the step in which an engine decoded and a learner rank computed."),
    Metric("time/bubble_share", "share", "Time of the step in which neither did."),
    Metric("time/sync_s", "seconds", "Weights from the learner to all rollout workers."),
    Metric("time/evaluation_s", "seconds", "Evaluation after the step.", False),
    Metric("time/checkpoint_s", "seconds", "Checkpoint after the step.", False),
    Metric("eval/<set>/mean", "score", "Mean score on a held-out set.", False),
    Metric("eval/<set>/failure_share", "share", "Its responses without a reward; they count as not correct.", False),
    Metric("eval/<set>/demonstration_loss", "nats/token", "Loss on its demonstrations.", False),
    Metric("faults/<kind>", "count", "Recovered failures since the line before; see docs/faults.md.", False),
    Metric("observe/non_finite", "count", "Values of this line that were not finite, written as null."),
    Metric("observe/trackers_disabled", "count", "Trackers that failed and were switched off."),
)  # fmt: skip

_PATTERNS = [re.compile(re.sub(r"<\w+>", ".+", metric.name)) for metric in METRICS]


def unknown_metrics(names: Iterable[str]) -> list[str]:
    """The names that `METRICS` does not list."""
    return [name for name in names if not any(pattern.fullmatch(name) for pattern in _PATTERNS)]


def missing_metrics(names: Iterable[str]) -> list[str]:
    """The names that each line must have and that are not among `names`."""
    present = set(names)
    return [metric.name for metric in METRICS if metric.every_step and metric.name not in present]


def complete_line(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with null for each name that every line must have, e.g. for the evaluation before training."""
    always = {metric.name: None for metric in METRICS if metric.every_step}
    return always | dict(values)


def branch_of(decision: Decision) -> str:
    """What a prompt trained on, in one word: rollouts, demonstration, both or nothing."""
    match decision.rollout_weight != 0, decision.demo_weight != 0:
        case True, True:
            return "both"
        case True, False:
            return "rollouts"
        case False, True:
            return "demonstration"
        case _:
            return "nothing"


def summarize_evaluations(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """First, best and last evaluation of each set, from the lines of metrics.jsonl in their order.

    Example: `{"math": {"first": {"step": 0, "mean": 0.2}, "best": {…}, "last": {…}}}`. The best is the
    highest mean, the earliest of equals.
    """
    history: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for line in lines:
        for name, mean in evaluation_means(line).items():
            history[name].append({"step": line["step"], "mean": mean})
    return {
        name: {"first": points[0], "best": max(points, key=lambda point: point["mean"]), "last": points[-1]}
        for name, points in history.items()
    }


def render_metrics() -> str:
    """The whole text of docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made from `hpt_ray/observe/metrics.py` by `python -m hpt_ray.observe.metrics`. Do not edit by hand.",
        "",
        "Each line of `metrics.jsonl` is one step. Names marked *always* are in every line, null if nothing "
        "was",
        "observed. A part in `<…>` stands for one name per value.",
        "",
        "| name | unit | meaning | when |",
        "|---|---|---|---|",
    ]
    for metric in METRICS:
        when = "always" if metric.every_step else ""
        meaning = metric.meaning.replace("|", "\\|")
        lines.append(f"| `{metric.name}` | {metric.unit} | {meaning} | {when} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command = "python -m hpt_ray.observe.metrics"
    sys.exit(write_or_check(DOCS / "metrics.md", render_metrics(), command, check="--check" in sys.argv[1:]))
