"""The page that compares several runs: methods beside each other, each the mean of its seeds.

In: `Method`s. Out: title, introduction and sections. A number in a table is the mean over seeds; `±` is one
sample standard deviation unless a table says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hpt_ray.evaluation.seed_stats import BANDS
from hpt_ray.observe.progress import short_time
from hpt_ray.tools.report.attempts import attempt_map, solve_rate_maps
from hpt_ray.tools.report.curves import Curve, curves_figure, curves_of
from hpt_ray.tools.report.html import (
    Html,
    Pictures,
    Section,
    details_html,
    escape,
    grid,
    note_html,
    table_html,
)
from hpt_ray.tools.report.lines import LINES, Lines
from hpt_ray.tools.report.load import RunData, Series
from hpt_ray.tools.report.methods import Method, differing_keys, is_of_method, shown, value_of
from hpt_ray.tools.report.pass_at_k import benchmarks_of, pass_alt, pass_at_k_figure, pass_curves
from hpt_ray.tools.report.results import named, results
from hpt_ray.tools.report.run_figures import alt_of, mean_over_sets, offline_ratio
from hpt_ray.tools.report.style import rounded

DASH = "–"
MOST_MAPS = 4  # heat maps beside each other
BAND = "std"

COMPARED: dict[str, tuple[Lines, str | Callable[[RunData], Series]]] = {
    "reward": (LINES["reward"], "reward/mean"),
    "offline_ratio": (Lines("Offline ratio", "weight of demonstrations", {}, share=True), offline_ratio),
    "entropy": (LINES["entropy"], "policy/entropy"),
    "length": (LINES["length"], "rollout/length_mean"),
    "grad_norm": (LINES["grad_norm"], "optim/grad_norm"),
    "step_time": (Lines("Time of a step", "seconds, without evaluation", {}), "time/step_s"),
}
EVALUATIONS = Lines("Evaluations", "mean score over the held-out sets", {}, share=None)


def comparison_page(
    methods: Sequence[Method], pictures: Pictures, left_out: Sequence[RunData] = ()
) -> tuple[str, list[Section], str]:
    """Title, sections and introduction (HTML). `left_out`: runs without a step yet, which are only named."""
    sections = [Section(title, html) for title, make in SECTIONS.items() if (html := make(methods, pictures))]
    title = " · ".join(method.label for method in methods[:4]) + (" · …" if len(methods) > 4 else "")
    return title, sections, introduction(methods, left_out)


def introduction(methods: Sequence[Method], left_out: Sequence[RunData] = ()) -> str:
    num_runs = sum(len(method.runs) for method in methods)
    lead = f"{num_runs} runs, {len(methods)} {'method' if len(methods) == 1 else 'methods'}"
    rows = [
        [
            named(method),
            ", ".join(shown(seed) for seed in method.seeds),
            _from_to([run.num_steps for run in method.runs]),
            f"{sum(run.state == 'done' for run in method.runs)} of {len(method.runs)}",
        ]
        for method in methods
    ]
    caption = "Runs whose configurations differ in the seed only are one method"
    table = table_html(rows, ["method", "seeds", "steps", "finished"], caption)
    names = ", ".join(run.name for run in left_out)
    note = note_html(f"Left out, since no step of them is done: {names}.") if left_out else ""
    return f'<p class="lead">{escape(lead)}</p>\n{table}{note}'


# -- curves, prompts, costs ------------------------------------------------------------------------


def learning(methods: Sequence[Method], pictures: Pictures) -> str:
    drawn = [_figure("evaluations", EVALUATIONS, curves_of(methods, mean_over_sets, smooth=False), pictures)]
    for name, (lines, metric) in COMPARED.items():
        drawn.append(_figure(name, lines, curves_of(methods, metric, band=BAND), pictures))
    sets = list(
        dict.fromkeys(name for method in methods for run in method.runs for name in run.evaluations())
    )
    by_set = [
        _figure(
            f"evaluation_{number}",
            Lines(f"Evaluation: {name}", "mean score", {}, share=None),
            curves_of(methods, f"eval/{name}/mean", smooth=False),
            pictures,
        )
        for number, name in enumerate(sets)
    ]
    several = details_html("Evaluations by set", grid(*filter(None, by_set))) if len(sets) > 1 else ""
    note = f"Bands: {BANDS[BAND][1]}. Curves of steps are rolling means. Thin lines: single seeds that went further."
    return note_html(note) + grid(*filter(None, drawn)) + several


def _figure(name: str, lines: Lines, curves: Sequence[Curve], pictures: Pictures) -> str:
    if not any(np.any(np.abs(curve.mean) > 1e-9) for curve in curves):
        return ""
    figure = curves_figure(curves, lines.title, lines.unit, share=lines.share)
    found = {curve.label: Series(curve.x, curve.mean) for curve in curves}
    return pictures.add(name, figure, alt_of(lines.title, lines.unit, found))


def pass_at_k(methods: Sequence[Method], pictures: Pictures) -> str:
    """One figure per benchmark that several samples were drawn for."""
    drawn = []
    for number, benchmark in enumerate(benchmarks_of(methods)):
        curves = pass_curves(methods, benchmark, band=BAND)
        if any(len(curve.x) > 1 for curve in curves):
            figure = pass_at_k_figure(curves, f"pass@k on {benchmark}")
            drawn.append(pictures.add(f"pass_at_k_{number}", figure, pass_alt(benchmark, curves)))
    return grid(*drawn)


def prompts(methods: Sequence[Method], pictures: Pictures) -> str:
    """The solve-rate maps of the first run of each method."""
    firsts = [(method, attempt_map(method.runs[0].attempts)) for method in methods]
    maps = [(method, map_) for method, map_ in firsts if map_.has_solve_rates][:MOST_MAPS]
    if len(maps) < 2:
        return ""
    figure = solve_rate_maps([(m.label, map_) for m, map_ in maps], "Solve rate per prompt")
    rows: list[list[object]] = []
    for method, map_ in maps:
        first, last, best = _first_last_best(map_.solve_rate)
        solved = [int(np.sum(rates > 0)) for rates in (first, last, best)]
        rows.append([named(method), f"{len(first):,}", *solved, int(np.sum((first > 0) & (last == 0)))])
    alt = "Heat maps of solve rates by prompt and attempt, one per method: " + "; ".join(
        f"{method.label} solved {row[4]} of {row[1]} at some attempt"
        for (method, _), row in zip(maps, rows, strict=True)
    )
    seeds = ", ".join(shown(method.runs[0].seed) for method, _ in maps)
    caption = (
        f"One run of each method (seeds {seeds}), rows sorted by when {maps[0][0].label} first solved them."
    )
    header = ["method", "prompts", "solved at first", "solved at last", "at some attempt", "lost again"]
    table = table_html(rows, header, "Prompts with a right rollout at their first, last and any attempt")
    return grid(pictures.add("prompts", figure, alt, caption), Html(f"<div>{table}</div>"))


def _first_last_best(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve rates of the prompts that were graded at all: [Q, V] → [Q'] each."""
    graded = rates[np.isfinite(rates).any(axis=1)]
    known, rows = np.isfinite(graded), np.arange(len(graded))
    first, last = known.argmax(axis=1), known.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
    return graded[rows, first], graded[rows, last], np.nanmax(graded, axis=1)


def costs(methods: Sequence[Method], pictures: Pictures) -> str:
    rows = [
        [
            named(method),
            _from_to([run.num_steps for run in method.runs]),
            rounded(float(np.mean([run.tokens_sampled for run in method.runs]))),
            rounded(float(np.mean([run.tokens_trained for run in method.runs]))),
            short_time(float(np.mean([run.wall_s for run in method.runs]))),
            _step_seconds(method.runs),
        ]
        for method in methods
    ]
    header = ["method", "steps", "tokens sampled", "tokens trained on", "time", "time of a step"]
    return table_html(rows, header, "What a run cost, mean over seeds")


def _step_seconds(runs_: Sequence[RunData]) -> str:
    means = [series.values.mean() for run in runs_ if len(series := run.series("time/step_s"))]
    return f"{np.mean(means):.2f} s" if means else DASH


def differences(methods: Sequence[Method], pictures: Pictures) -> str:
    """The keys in which the methods' configurations differ."""
    firsts = [method.runs[0] for method in methods]
    keys = [key for key in differing_keys(firsts) if key not in ("run.name", "run.dir", "run.seed")]
    rows = [[key, *(shown(value_of(run, key)) for run in firsts)] for key in keys]
    if not rows:
        return ""
    unequal = [key for key in keys if not is_of_method(key)]
    note = f"Not taken as a difference of method: {', '.join(unequal)}." if unequal else ""
    header = ["key", *(named(method) for method in methods)]
    table = table_html(rows, header, "Keys that differ", align="l" * len(header))
    return table + (note_html(note) if note else "")


def runs(methods: Sequence[Method], pictures: Pictures) -> str:
    rows = [
        [
            run.name,
            named(method),
            shown(run.seed),
            f"{run.num_steps:,}",
            run.state,
            short_time(run.wall_s),
            _last(run),
        ]
        for method in methods
        for run in method.runs
    ]
    header = ["run", "method", "seed", "steps", "state", "time", "last evaluation"]
    return table_html(rows, header, "Every run; the evaluation is the mean over sets", align="llrrlrr")


def _last(run: RunData) -> str:
    mean = mean_over_sets(run)
    return f"{100 * mean.values[-1]:.1f} (step {mean.steps[-1]:,})" if len(mean) else DASH


def _from_to(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


SECTIONS: dict[str, Callable[[Sequence[Method], Pictures], str]] = {
    "Results": results,
    "Learning": learning,
    "pass@k": pass_at_k,
    "Prompts": prompts,
    "Costs": costs,
    "What differs": differences,
    "Runs": runs,
}
