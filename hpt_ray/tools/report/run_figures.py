"""The figures of one run: tables of them. A metric becomes visible by being named in `LINES`.

In: `RunData`. Out: a figure and what it shows in words; None where the run has no data for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hpt_ray.observe.step_line import short_time
from hpt_ray.tools.report.attempts import attempt_map, solve_rate_figure
from hpt_ray.tools.report.curves import mean_over_sets, smooth_curve
from hpt_ray.tools.report.figures import Curve, Marks, curves_figure, pass_at_k_figure, stack_figure
from hpt_ray.tools.report.load import RunData, Series
from hpt_ray.tools.report.style import COLORS, GREY, HEIGHT, INK, line_style, short
from hpt_ray.types import Outcome

NOTHING = 1e-9  # what rounding leaves of a zero; no figure shows that
BLUE, VERMILLION, _, PURPLE, ORANGE, SKY = COLORS
OUTCOMES: dict[str, str] = dict(
    zip(map(str, Outcome), (BLUE, ORANGE, GREY, PURPLE, VERMILLION, INK), strict=True)
)


@dataclass(frozen=True, slots=True)
class Lines:
    """A figure of lines over steps. `metrics`: name at the line → metric, or a pattern with one group."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    share: bool | None = False  # None: where all values are between 0 and 1
    log: bool = False
    smooth: bool = True
    by_set: bool = False  # one line an eval set, also where it is all zero, and their mean


LINES = {
    "reward": Lines("Reward", "mean score of the graded rollouts", {"": "reward/mean"}),
    "evaluations": Lines(
        "Evaluations", "mean score by eval set", {"": r"eval/([^/]+)/mean"}, None, smooth=False, by_set=True
    ),
    "offline_ratio": Lines(
        "Offline ratio",
        "share that trains on demonstrations",
        {
            "of prompts": "selection/demo_prompt_ratio",
            "by weight": "selection/demo_share",
            "of samples": "selection/demo_sample_ratio",
        },
        share=True,
    ),
    "entropy": Lines("Entropy", "nats per response token, of what trained", {"": "policy/entropy"}),
    "length": Lines("Response length", "mean tokens of a rollout", {"": "rollout/length_mean"}),
    "truncated": Lines(
        "Truncated responses",
        "rollouts that did not end their turn",
        {"": "rollout/truncated_ratio"},
        share=True,
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
        "Off-policy steps", "versions behind the learner, mean", {"": "rollout/off_policy_steps_mean"}
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


class Drawn(NamedTuple):
    """A figure, what it shows in words, and what stands below it."""

    figure: Figure
    alt: str
    caption: str = ""


def marks_of(run: RunData) -> Marks:
    """The steps at which something failed and was mended or an update was skipped, and where phases begin."""
    faults = {int(step) for series in faults_of(run).values() for step in series.steps[series.values > 0]}
    phase = run.series("phase")
    begins = phase.steps[1:][np.diff(phase.values) != 0]
    return Marks(sorted(faults), [int(step) for step in begins])


def faults_of(run: RunData) -> dict[str, Series]:
    """How often what failed, and how many updates were skipped."""
    names = [name for name in run.names if name.startswith("faults/") or name.endswith("/skipped_updates")]
    return {name: run.series(name) for name in names}


def lines_figure(run: RunData, lines: Lines) -> Drawn | None:
    """One row of `LINES`; None where the run has none of its metrics, or they are never more than rounding."""
    found = _series_of(run, lines)
    if not any(lines.by_set or np.any(abs(series.values) > NOTHING) for series in found.values()):
        return None
    is_named = lines.by_set or len(found) > 1 or len(lines.metrics) > 1
    curves = [
        smooth_curve(series, label * is_named, *line_style(i), smooth=lines.smooth)
        for i, (label, series) in enumerate(found.items())
    ]
    if lines.by_set:
        curves = [replace(curve, width=1.2) for curve in curves]
    if lines.by_set and len(found) > 1 and len(mean := mean_over_sets(run)):
        curves.append(Curve("mean", INK, mean.steps, mean.values, width=2.4))
    height = HEIGHT + 0.16 * max(0, len(curves) - 11)  # inches, so that every line has room for its name
    look: dict[str, Any] = {"share": lines.share, "log": lines.log, "height": height, "marks": marks_of(run)}
    figure = curves_figure(curves, lines.title, lines.unit, **look)
    return Drawn(figure, alt_of(lines.title, lines.unit, found))


def _series_of(run: RunData, lines: Lines) -> dict[str, Series]:
    """By the name at the line; without what lies below a line that is there."""
    found: dict[str, Series] = {}
    for label, metric in lines.metrics.items():
        if "(" in metric:
            found |= run.matching(metric)
            continue
        series = run.series(metric)
        points = series.steps.tolist(), series.values.tolist()
        hidden = any(points == (other.steps.tolist(), other.values.tolist()) for other in found.values())
        if len(series) and not hidden:
            found[label] = series
    return found


def outcomes_figure(run: RunData) -> Drawn | None:
    """Shares of the graded rollouts by what grading came to."""
    present = run.matching(r"reward/outcome/(.+)")
    if not present:
        return None
    names = [name for name in dict.fromkeys([*OUTCOMES, *present]) if name in present]
    parts = {name.replace("_", " "): present[name] for name in names}
    title, colors = "Outcomes of grading", [OUTCOMES.get(name, SKY) for name in names]
    figure = stack_figure(
        parts, colors, title, "share of the graded rollouts", share=True, marks=marks_of(run)
    )
    return Drawn(figure, alt_of(title, "rollouts", parts))


def reasons_figure(run: RunData) -> Drawn | None:
    """Prompts by the gate's reason; with two of them there is nothing that the offline ratio does not show."""
    parts = {k.replace("_", " "): series for k, series in run.matching(r"selection/reason/(.+)").items()}
    if len(parts) < 3:  # two are the offline ratio and its rest
        return None
    title, unit = "Reasons of the gate", "prompts of a step"
    return Drawn(stack_figure(parts, COLORS, title, unit), alt_of(title, unit, parts))


def phases_figure(run: RunData) -> Drawn | None:
    """Seconds of a step by phase. Training that overlaps with sampling lies under it and is not seen."""
    seconds = {name: run.series(f"time/{name}_s") for name in ("step", "rollout", "sync")}
    if not len(seconds["step"]):
        return None
    steps = np.unique(np.concatenate([series.steps for series in seconds.values()]))
    step, rollout, sync = (series.at(steps) for series in seconds.values())
    rest = Series(steps, np.maximum(0.0, step - rollout - sync))
    parts, colors, caption = {"training": rest, "weight sync": seconds["sync"]}, [ORANGE, PURPLE], ""
    if run.tokens_sampled > 0:
        parts = {"sampling": seconds["rollout"], "training after it": rest, "weight sync": seconds["sync"]}
        colors = [SKY, *colors]
        caption = "Sampling includes grading, and the training that goes on beside it. "
    beside = {name: run.series(f"time/{name}_s").values.sum() for name in ("evaluation", "checkpoint")}
    caption += "Besides: " + ", ".join(f"{name} {short_time(s)}" for name, s in beside.items()) + " in all."
    figure = stack_figure(parts, colors, "Time of a step by phase", "seconds", marks=marks_of(run))
    return Drawn(figure, alt_of("Time by phase", "seconds", parts), caption)


def prompts_figure(run: RunData) -> Drawn | None:
    """Solve rate and branch per prompt over its attempts."""
    map_ = attempt_map(run.attempts)
    if not map_.has_solve_rates:
        return None
    rates = map_.solve_rate
    never = int(np.sum(~(rates > 0).any(axis=1)))
    alt = (
        f"Heat map of {len(rates):,} prompts by {rates.shape[1]} attempts: share of rollouts solved, and what "
        f"each attempt trained on. {never:,} prompts were never solved."
    )
    return Drawn(solve_rate_figure(map_), alt)


def draw_pass_at_k(benchmark: str, curves: Sequence[Curve]) -> Drawn:
    """Curves over k, of one run or of several methods."""
    parts = [
        f"{curve.label} {100 * curve.mean[0]:.1f} % at k = {curve.x[0]} to {100 * curve.mean[-1]:.1f} % at "
        f"k = {curve.x[-1]}".strip()
        for curve in curves
    ]
    title = f"pass@k on {benchmark}"
    return Drawn(pass_at_k_figure(curves, title), f"{title}: {'; '.join(parts)}.")


def alt_of(title: str, unit: str, found: Mapping[str, Series]) -> str:
    """What a figure of series shows, in words and numbers."""
    parts = [
        f"{label or 'value'} from {short(round(series.values[0], 4))} at step {series.steps[0]} to "
        f"{short(round(series.values[-1], 4))} at step {series.steps[-1]}"
        for label, series in found.items()
        if len(series)
    ]
    more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
    return f"{title} ({unit}) over steps: {'; '.join(parts[:6])}{more}."


# What is not simply a row of `LINES`.
FIGURES: dict[str, Callable[[RunData], Drawn | None]] = {
    "outcomes": outcomes_figure,
    "reasons": reasons_figure,
    "prompts": prompts_figure,
    "phases": phases_figure,
}


def draw_all(run: RunData, names: Sequence[str]) -> Iterator[tuple[str, Drawn]]:
    """Those of the figures that the run has data for, with their names."""
    for name in names:
        drawn = FIGURES[name](run) if name in FIGURES else lines_figure(run, LINES[name])
        if drawn is not None:
            yield name, drawn
