"""The paper's figures from our runs: curves with bands over seeds, solve-rate maps, pass@k.

In: `Results` and finished evaluations. Out: HTML with the pictures in it; the same as PNG files. One set of
figures a model; methods that are ablations of the reference are drawn apart, so that lines can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpt_ray.tools.report import (
    Curve,
    Html,
    Method,
    Pictures,
    RunData,
    Series,
    attempt_map,
    curves_figure,
    curves_of,
    grid,
    group_runs,
)
from hpt_ray.tools.report.attempts import solve_rate_maps
from hpt_ray.tools.report.pass_at_k import pass_at_k_figure
from hpt_ray.tools.report.style import INK
from hpt_ray.tools.suite.collect import Results
from hpt_ray.tools.suite.dynamics import ENTROPY, OFFLINE
from hpt_ray.tools.suite.passes import BASE
from hpt_ray.tools.suite.solved import Passes

MOST_MAPS = 3
BAND = "ci95"


@dataclass(frozen=True, slots=True)
class Lines:
    """A figure of curves over steps."""

    title: str
    unit: str
    metric: str | Callable[[RunData], Series]
    share: bool = False


def mean_over(names: Sequence[str]) -> Callable[[RunData], Series]:
    """The mean of several sets at the steps where all were evaluated."""

    def read(run: RunData) -> Series:
        found = [run.evaluations().get(name) for name in names]
        known = [series for series in found if series is not None and len(series)]
        if len(known) < len(names) or not known:
            return Series(np.array([], int), np.array([]))
        steps = known[0].steps
        for series in known[1:]:
            steps = np.intersect1d(steps, series.steps)
        return Series(steps, np.mean([s.values[np.isin(s.steps, steps)] for s in known], axis=0))

    return read


def figures_of(results: Results, model: str, pictures: Pictures) -> Html:
    """All curves and maps of one model."""
    sets = results.suite.keys.sets
    rows = {
        "id": Lines(
            "Held-out prompts like those of training", "share right", mean_over(sets.in_distribution), True
        ),
        "ood": Lines(
            "Held-out prompts of other kinds", "share right", mean_over(sets.out_of_distribution), True
        ),
        "reward": Lines("Training reward", "mean score of the rollouts", "reward/mean"),
        "offline": Lines("Offline ratio", "share of prompts on demonstrations", OFFLINE, True),
        "entropy": Lines("Entropy", "nats per trained token", ENTROPY),
        "length": Lines("Response length", "tokens of a rollout", "rollout/length_mean"),
    }
    drawn: list[str] = []
    for part, methods in _parts(results, model).items():
        for name, lines in rows.items():
            curves = _with_one_end(results, curves_of(methods, lines.metric, band=BAND))
            if curves:
                figure = curves_figure(curves, f"{lines.title}: {part}", lines.unit, share=lines.share)
                alt = f"{lines.title} over steps on {model}: {', '.join(c.label for c in curves)}."
                drawn.append(pictures.add(f"{model}-{part}-{name}", figure, alt))
    return Html(grid(*drawn) + _maps(results, model, pictures))


def _with_one_end(results: Results, curves: list[Curve]) -> list[Curve]:
    """Without what lies past the steps of the equal budget; the label says to which step such a method goes on."""
    others = {results.title(name) for name, keys in results.suite.methods.items() if keys.budget}
    end = max((curve.x[-1] for curve in curves if curve.label not in others), default=None)
    if end is None:
        return curves
    return [curve if curve.x[-1] <= end else _cut(curve, end) for curve in curves]


def _cut(curve: Curve, end: float) -> Curve:
    shown = curve.x <= end
    arrays = {
        name: values[shown]
        for name in ("x", "mean", "low", "high", "raw")
        if (values := getattr(curve, name)) is not None
    }
    return replace(curve, label=f"{curve.label} (…{curve.x[-1]})", tails=(), **arrays)


def _parts(results: Results, model: str) -> dict[str, list[Method]]:
    """The methods of a model: the main ones, and the ablations of the reference with it."""
    reference, suite = results.suite.keys.reference, results.suite
    names = [name for name in results.methods if name != BASE]
    ablations = [name for name in names if suite.methods[name].tuned_as == reference]
    parts = {"methods": [n for n in names if n not in ablations]}
    if ablations:
        parts["ablations"] = [name for name in names if name == reference or name in ablations]
    made = {part: _grouped(results, model, names) for part, names in parts.items()}
    return {part: methods for part, methods in made.items() if methods}


def _grouped(results: Results, model: str, names: Sequence[str]) -> list[Method]:
    scores = [score for name in names for score in results.of(model, name)]
    labels = {score.run.root: results.title(score.spec.method) for score in scores}
    return group_runs([score.run for score in scores], labels) if scores else []


def _maps(results: Results, model: str, pictures: Pictures) -> str:
    """Solve rate per prompt and attempt, for the reference and what the paper shows beside it (Figures 3, 4)."""
    names = dict.fromkeys([results.suite.keys.reference, "sft_then_grpo", "grpo"])
    firsts = [scores[0] for name in names if (scores := results.of(model, name))][:MOST_MAPS]
    maps = [(results.title(s.spec.method), attempt_map(s.run.attempts)) for s in firsts]
    maps = [(name, map_) for name, map_ in maps if map_.has_solve_rates]
    if not maps:
        return ""
    seed = firsts[0].spec.seed
    figure = solve_rate_maps(maps, f"Solve rate per prompt over its attempts, seed {seed}")
    alt = (
        f"Heat maps of the share of rollouts solved, one row a prompt: {', '.join(name for name, _ in maps)}."
    )
    return pictures.add(f"{model}-solve-rates", figure, alt)


# -- pass@k ------------------------------------------------------------------------------------------


def pass_figures(results: Results, passes: Passes, pictures: Pictures) -> Html:
    """One figure a model, in the colours of its other figures."""
    return grid(*_pass_figures(results, passes, pictures))


def _pass_figures(results: Results, passes: Passes, pictures: Pictures) -> Iterator[str]:
    for model in results.suite.models:
        styles = {m.label: m for part in _parts(results, model).values() for m in part}
        curves = []
        for method in results.methods:
            if (model, method) in passes:
                ks, values = zip(*passes[model, method].means().items(), strict=True)
                style = styles.get(results.title(method))
                color, dash = (style.color, style.dash) if style else (INK, ":")
                curves.append(Curve(results.title(method), color, np.array(ks), np.array(values), dash=dash))
        if curves:
            figure = pass_at_k_figure(curves, f"pass@k: {results.suite.models[model].title}")
            alt = f"pass@k over k on {model}: {', '.join(f'{c.label} {c.mean[-1]:.1%} at {c.x[-1]}' for c in curves)}."
            yield pictures.add(f"{model}-pass-at-k", figure, alt)
