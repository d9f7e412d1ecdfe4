"""The paper's figures from our runs: curves with bands over seeds, solve-rate maps, pass@k.

In: `Results` and what the evaluations came to. Out: HTML with the pictures in it; the same as PNG files. One set of
figures a model; ablations of the reference are drawn apart, by what they vary, so that lines can be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hpt_ray.tools import report
from hpt_ray.tools.report import Curve, Html, Method, Pictures, RunData, Series
from hpt_ray.tools.report.curves import mean_over_sets
from hpt_ray.tools.report.load import Attempt
from hpt_ray.tools.report.style import INK
from hpt_ray.tools.suite.collect import Results
from hpt_ray.tools.suite.dynamics import ENTROPY, offline_ratio
from hpt_ray.tools.suite.passes import Passes

MOST_MAPS = 3
MOST_SOURCES = 3  # data sources that have figures of their own, such as the levels of MATH
HEAD_START = "sft_then_grpo"  # what Figure 4 compares the reference with
BAND = "ci95"
# What a method of the reference's algorithm may vary → the name of the figures that show it beside the reference.
ABLATIONS = {
    "selection.gate": "gates",
    "selection.gamma": "gamma",
    "algorithm.offline_branch": "offline branches",
}
Line = tuple[str, str, str | Callable[[RunData], Series], bool]  # title, unit, metric, is a share


def figures_of(results: Results, model: str, pictures: Pictures) -> Html:
    """All curves and maps of one model."""
    lines = _evaluation_lines(results, model) | {
        "reward": ("Training reward", "mean score of the rollouts", "reward/mean", False),
        "offline": (
            "Offline ratio",
            "share of training samples that are demonstrations",
            offline_ratio,
            True,
        ),
        "entropy": ("Entropy", "nats per trained token", ENTROPY, False),
        "length": ("Response length", "tokens of a rollout", "rollout/length_mean", False),
    }
    drawn: list[str] = []
    for part, methods in _parts(results, model).items():
        for name, (title, unit, metric, share) in lines.items():
            curves = _with_one_end(results, report.curves_of(methods, metric, band=BAND))
            if curves:
                figure = report.curves_figure(curves, f"{title}: {part}", unit, share=share)
                alt = f"{title} over steps on {model}: {', '.join(c.label for c in curves)}."
                drawn.append(pictures.add(f"{model}-{part.replace(' ', '-')}-{name}", figure, alt))
    return Html(report.grid(*drawn) + report.grid(*_maps(results, model, pictures)))


def _evaluation_lines(results: Results, model: str) -> dict[str, Line]:
    """The two averages where training evaluates all their sets; else each set that it does (paper, Figure 5)."""
    sets, unit = results.suite.keys.sets, "share correct"
    runs = [run for name in results.suite.methods for run in results.runs(model, name)]
    there = [name for name in sets.test if any(name in run.evaluations() for run in runs)]
    if set(there) >= set(sets.in_distribution):
        near, far = (
            partial(mean_over_sets, names=n) for n in (sets.in_distribution, sets.out_of_distribution)
        )
        return {
            "id": ("Held-out prompts like those of training", unit, near, True),
            "ood": ("Held-out prompts of other kinds", unit, far, True),
        }
    return {name: (f"Held-out prompts, {name}", unit, f"eval/{name}/mean", True) for name in there}


def _with_one_end(results: Results, curves: list[Curve]) -> list[Curve]:
    """Without what lies past the steps of the equal budget; the label says to which step such a method goes on.

    One that begins later is left out, such as rewards after a long phase without rollouts.
    """
    others = {results.title(name) for name, keys in results.suite.methods.items() if keys.budget}
    end = max((curve.x[-1] for curve in curves if curve.label not in others), default=np.inf)
    return [curve if curve.x[-1] <= end else _cut(curve, end) for curve in curves if curve.x[0] <= end]


def _cut(curve: Curve, end: float) -> Curve:
    arrays = {name: getattr(curve, name) for name in ("x", "mean", "low", "high")}
    shown = {name: values[curve.x <= end] for name, values in arrays.items() if values is not None}
    return replace(curve, label=f"{curve.label} (…{curve.x[-1]})", tails=(), **shown)


def _parts(results: Results, model: str) -> dict[str, list[Method]]:
    """The methods of a model; apart from them, with the reference, those that vary one of `ABLATIONS` in it."""
    reference = results.suite.keys.reference
    runs = {name: of_name for name in results.suite.methods if (of_name := results.runs(model, name))}
    parts: dict[str, list[str]] = {"methods": []}
    for name, of_name in runs.items():
        of_reference = runs.get(reference, of_name)
        varied = _varied(of_name[0].config, of_reference[0].config)
        parts.setdefault(varied or "methods", [] if name == reference else [reference]).append(name)
    made = {}
    for part, names in parts.items():
        titles = {run.root: results.title(name) for name in names for run in runs.get(name, [])}
        of_part = [run for name in names for run in runs.get(name, [])]
        made[part] = report.group_runs(of_part, titles) if of_part else []
    return {part: methods for part, methods in made.items() if methods}


def _varied(config: Mapping[str, Any], reference: Mapping[str, Any]) -> str | None:
    """Under which name of `ABLATIONS` a method is shown; None: with the main ones."""
    if config["algorithm.name"] != reference["algorithm.name"]:
        return None
    return next((name for key, name in ABLATIONS.items() if config.get(key) != reference.get(key)), None)


def _maps(results: Results, model: str, pictures: Pictures) -> Iterator[str]:
    """Solve rate per prompt and attempt, for the reference and what the paper shows beside it (Figure 3), and what the
    reference gained on SFT→GRPO (Figure 4). Of a few data sources each has its own."""
    reference = results.suite.keys.reference
    names = dict.fromkeys([reference, HEAD_START, "grpo"])
    firsts = {name: runs[0] for name in names if (runs := results.runs(model, name))}
    sources = sorted({_source_of(attempt) for run in firsts.values() for attempt in run.attempts})
    for source in sources if 1 < len(sources) <= MOST_SOURCES else [None]:
        attempts = {
            name: [a for a in run.attempts if source in (None, _source_of(a))] for name, run in firsts.items()
        }
        all_maps = [(results.title(name), report.attempt_map(found)) for name, found in attempts.items()]
        maps = [(name, map_) for name, map_ in all_maps[:MOST_MAPS] if map_.has_solve_rates]
        if not maps:
            continue
        ending = f"-{re.sub('[^a-z0-9]+', '-', source.lower())}" if source else ""
        of = f"{source}, seed" if source else "seed"
        seed = next(iter(firsts.values())).seed
        figure = report.solve_rate_maps(maps, f"Solve rate per prompt over its attempts, {of} {seed}")
        shown = ", ".join(name for name, _ in maps)
        alt = f"Heat maps of the share of rollouts solved, one row a prompt: {shown}."
        yield pictures.add(f"{model}-solve-rates{ending}", figure, alt)
        if {reference, HEAD_START} <= attempts.keys():
            gains = report.gain_map(attempts[reference], attempts[HEAD_START])
            if gains.has_solve_rates:
                both = f"{results.title(reference)} minus {results.title(HEAD_START)}"
                figure = report.solve_rate_maps(
                    [(both, gains)], f"Solve rate gained, {of} {seed}", report.GAIN
                )
                alt = f"Heat map of the share of rollouts solved, {both}, one row a prompt."
                yield pictures.add(f"{model}-gains{ending}", figure, alt)


def _source_of(attempt: Attempt) -> str:
    return attempt.prompt_id.rpartition("/")[0]


def pass_figures(results: Results, passes: Passes, pictures: Pictures) -> Html:
    """pass@k: one figure a model, in the colours of its other figures."""
    drawn = []
    for model in results.suite.models:
        styles = {m.label: (m.color, m.dash) for part in _parts(results, model).values() for m in part}
        curves = []
        for method in results.methods:
            if (model, method) in passes:
                means, title = passes[model, method].means(), results.title(method)
                color, dash = styles.get(title, (INK, ":"))
                curves.append(Curve(title, color, np.array([*means]), np.array([*means.values()]), dash=dash))
        if curves:
            figure = report.pass_at_k_figure(curves, f"pass@k: {results.model_title(model)}")
            shown = ", ".join(f"{c.label} {c.mean[-1]:.1%} at {c.x[-1]}" for c in curves)
            drawn.append(pictures.add(f"{model}-pass-at-k", figure, f"pass@k over k on {model}: {shown}."))
    return report.grid(*drawn)
