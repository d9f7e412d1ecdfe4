"""The figures of one run: a table of them, each a function of `RunData` that returns None without data.

Most are lines over steps and are rows of `LINES`; `FIGURES` lists all, by the part of the page they are in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from hpt_ray.observe.progress import short_time
from hpt_ray.tools.report.attempts import attempt_map, solve_rate_figure
from hpt_ray.tools.report.curves import Curve, Marks, curves_figure, smooth_curve
from hpt_ray.tools.report.lines import LINES, Lines
from hpt_ray.tools.report.load import RunData, Series
from hpt_ray.tools.report.stacks import stack_figure
from hpt_ray.tools.report.style import (
    BLUE,
    COLORS,
    GREY,
    HEIGHT,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    line_style,
    short,
)

NOTHING = 1e-9  # what rounding leaves of a zero; no figure shows that


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure, what it shows in words, and what stands below it."""

    figure: Figure
    alt: str
    caption: str = ""


OUTCOMES = {
    "correct": BLUE,
    "wrong": ORANGE,
    "no_answer": GREY,
    "unparsable": PURPLE,
    "timeout": VERMILLION,
    "error": INK,
}


def marks_of(run: RunData) -> Marks:
    """The steps at which something failed and was mended or an update was skipped, and where phases begin."""
    names = [name for name in run.names if name.startswith("faults/") or name.endswith("/skipped_updates")]
    faults = {int(step) for name in names for step in _where_positive(run.series(name))}
    phase = run.series("phase")
    begins = phase.steps[1:][np.diff(phase.values) != 0] if len(phase) else []
    return Marks(sorted(faults), [int(step) for step in begins])


def lines_figure(run: RunData, lines: Lines) -> Drawn | None:
    """One row of `LINES`; None where the run has none of its metrics, or they are never more than rounding."""
    found: dict[str, Series] = {}
    for label, metric in lines.metrics.items():
        if "(" in metric:
            found |= run.matching(metric)
            continue
        series = run.series(metric)
        hidden = any(_same(series, other) for other in found.values())  # below a line that is there
        if len(series) and not hidden:
            found[label] = series
    if not any(np.any(abs(series.values) > NOTHING) for series in found.values()):
        return None
    labels = list(found) if len(found) > 1 or len(lines.metrics) > 1 else [""]
    curves = [
        smooth_curve(series, label, *line_style(i), smooth=lines.smooth)
        for i, (label, series) in enumerate(zip(labels, found.values(), strict=True))
    ]
    figure = curves_figure(
        curves, lines.title, lines.unit, share=lines.share, log=lines.log, marks=marks_of(run)
    )
    return Drawn(figure, alt_of(lines.title, lines.unit, found), lines.caption)


def outcomes_figure(run: RunData) -> Drawn | None:
    """Shares of the graded rollouts by what grading came to."""
    present = run.matching(r"reward/outcome/(.+)")
    names = [*(n for n in OUTCOMES if n in present), *(n for n in present if n not in OUTCOMES)]
    if not present:
        return None
    colors = [OUTCOMES.get(name, SKY) for name in names]
    parts = {name.replace("_", " "): present[name] for name in names}
    title, unit = "Outcomes of grading", "share of the graded rollouts"
    return Drawn(
        stack_figure(parts, colors, title, unit, share=True, marks=marks_of(run)),
        alt_of(title, "rollouts", parts),
    )


def reasons_figure(run: RunData) -> Drawn | None:
    """Prompts by the gate's reason; with two of them there is nothing that the offline ratio does not show."""
    parts = {k.replace("_", " "): series for k, series in run.matching(r"selection/reason/(.+)").items()}
    if len(parts) < 3:  # two are the offline ratio and its rest
        return None
    title, unit = "Reasons of the gate", "prompts of a step"
    return Drawn(stack_figure(parts, COLORS, title, unit), alt_of(title, unit, parts))


def phases_figure(run: RunData) -> Drawn | None:
    """Seconds of a step by phase. Training that overlaps with sampling lies under it and is not seen."""
    step, rollout, sync = (run.series(f"time/{name}_s") for name in ("step", "rollout", "sync"))
    if not len(step):
        return None
    samples = run.tokens_sampled > 0
    rest = dict(zip(step.steps.tolist(), step.values.tolist(), strict=True))
    for series in (rollout, sync):
        for s, v in zip(series.steps.tolist(), series.values.tolist(), strict=True):
            rest[s] = max(0.0, rest.get(s, 0.0) - v)
    learning = Series(np.array(list(rest)), np.array(list(rest.values())))
    parts = {"training after it" if samples else "training": learning, "weight sync": sync}
    colors = [ORANGE, PURPLE]
    if samples:
        parts, colors = {"sampling": rollout, **parts}, [SKY, *colors]
    beside = {name: run.series(f"time/{name}_s").values.sum() for name in ("evaluation", "checkpoint")}
    caption = "Sampling includes grading, and the training that goes on beside it. " if samples else ""
    caption += "Besides: " + ", ".join(f"{name} {short_time(s)}" for name, s in beside.items()) + " in all."
    figure = stack_figure(parts, colors, "Time of a step by phase", "seconds", marks=marks_of(run))
    return Drawn(figure, alt_of("Time by phase", "seconds", parts), caption)


def evaluations_figure(run: RunData) -> Drawn | None:
    """Mean score of every held-out set, and the mean over the sets."""
    sets = run.evaluations()
    if not sets:
        return None
    several = len(sets) > 1
    curves = [
        Curve(name, line_style(i)[0], s.steps, s.values, dash=line_style(i)[1], width=1.2)
        for i, (name, s) in enumerate(sets.items())
    ]
    if several and len(mean := mean_over_sets(run)):
        curves.append(Curve("mean", INK, mean.steps, mean.values, width=2.4))
    title, unit = "Evaluations", "mean score by held-out set"
    figure = curves_figure(
        curves,
        title,
        unit,
        share=None,
        marks=marks_of(run),
        height=HEIGHT + 0.16 * max(0, len(curves) - 11),
    )
    return Drawn(figure, alt_of(title, unit, sets))


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


def mean_over_sets(run: RunData) -> Series:
    """The mean over all held-out sets, at the steps where every set has a value."""
    sets = list(run.evaluations().values())
    if not sets:
        return Series(np.zeros(0, int), np.zeros(0))
    common = sorted(set.intersection(*({int(s) for s in series.steps} for series in sets)))
    values = [series.values[np.isin(series.steps, common)] for series in sets]
    return Series(np.array(common, int), np.mean(values, axis=0))


def alt_of(title: str, unit: str, found: Mapping[str, Series]) -> str:
    """What a figure of series shows, in words and numbers."""
    parts = []
    for label, series in found.items():
        if not len(series):
            continue
        first, last = series.values[0], series.values[-1]
        parts.append(
            f"{label or 'value'} from {short(round(first, 4))} at step {series.steps[0]} to "
            f"{short(round(last, 4))} at step {series.steps[-1]}"
        )
    more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
    return f"{title} ({unit}) over steps: {'; '.join(parts[:6])}{more}."


def offline_ratio(run: RunData) -> Series:
    """Σβ/Σ(α + β); of older runs the share of prompts with a demonstration, which the switch makes the same."""
    by_weight = run.series("selection/demo_share")
    return by_weight if len(by_weight) else run.series("selection/demo_prompt_ratio")


def _same(one: Series, other: Series) -> bool:
    return np.array_equal(one.steps, other.steps) and np.array_equal(one.values, other.values)


def _where_positive(series: Series) -> np.ndarray:
    return series.steps[series.values > 0]


Draw = Callable[[RunData], Drawn | None]


def _rows(*names: str) -> dict[str, Draw]:
    return {name: partial(lines_figure, lines=LINES[name]) for name in names}


# Section of the page → name of the file → figure.
FIGURES: dict[str, dict[str, Draw]] = {
    "Learning": {
        **_rows("reward"),
        "evaluations": evaluations_figure,
        **_rows("offline_ratio"),
        "outcomes": outcomes_figure,
        **_rows("entropy", "length", "truncated", "demo_loss"),
        "reasons": reasons_figure,
    },
    "Prompts": {"prompts": prompts_figure},
    "Optimizer and policy": _rows(
        "grad_norm",
        "lr",
        "loss",
        "logprob_gap",
        "kl",
        "clipped",
        "critic",
        "explained_variance",
        "off_policy_steps",
    ),
    "Time and memory": {"phases": phases_figure, **_rows("busy", "throughput", "memory")},
}


def draw_all(run: RunData, section: str) -> Sequence[tuple[str, Drawn]]:
    """The figures of a section that the run has data for."""
    drawn = ((name, draw(run)) for name, draw in FIGURES[section].items())
    return [(name, found) for name, found in drawn if found is not None]
