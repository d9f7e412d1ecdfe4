"""What several runs came to, beside each other: methods, each the mean of its seeds.

In: `RunData`. Out: blocks of the page's first view, as `summary` has them. A number in a table is the mean over seeds;
`±` is one sample standard deviation unless a table says otherwise. Final means the last evaluation of a run, not its
best: the best of many looks at a set is better than the model is.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hpt_ray.evaluation.statistics import percent, spread_of, welch_difference
from hpt_ray.observe.step_line import short_time
from hpt_ray.tools.report.attempts import attempt_map, solve_rate_maps
from hpt_ray.tools.report.curves import mean_over_sets, pass_curves
from hpt_ray.tools.report.figures import pass_at_k_figure
from hpt_ray.tools.report.html import png_of
from hpt_ray.tools.report.load import RunData
from hpt_ray.tools.report.methods import (
    DASH,
    Method,
    differing_keys,
    group_runs,
    is_of_method,
    shown,
    value_of,
)
from hpt_ray.tools.report.style import rounded
from hpt_ray.tools.report.summary import Block, only, table

MOST_MAPS = 4  # heat maps beside each other
MOST_LABELS = 4  # in a title


def comparison(runs: Sequence[RunData]) -> list[Block]:
    """The blocks, in their order. Runs without a step yet are only named."""
    methods = group_runs([run for run in runs if run.num_steps])
    blocks = [{"title": title, **make(methods)} for title, make in BLOCKS.items()] if methods else []
    if rest := ", ".join(run.name for run in runs if not run.num_steps):
        blocks.insert(1, {"title": "Left out", "notes": [f"No step is done of {rest}."]})
    return [block for block in blocks if len(block) > 1]


def title_of(runs: Sequence[RunData]) -> str:
    """Example: `hpt · grpo`."""
    labels = [method.label for method in group_runs(runs)]
    return " · ".join(labels[:MOST_LABELS]) + (" · …" if len(labels) > MOST_LABELS else "")


def picture(figure: Figure, alt: str, caption: str = "") -> list[str]:
    """Address, what is seen in words, and what stands below."""
    return [f"data:image/png;base64,{base64.b64encode(png_of(figure)).decode()}", alt, caption]


def methods_of(methods: Sequence[Method]) -> Block:
    num_runs = sum(len(method.runs) for method in methods)
    lead = f"{num_runs} runs, {len(methods)} {'method' if len(methods) == 1 else 'methods'}"
    rows = []
    for method in methods:
        finished = f"{sum(run.state == 'done' for run in method.runs)} of {len(method.runs)}"
        rows.append([method.label, ", ".join(map(shown, method.seeds)), _steps(method), finished])
    caption = "Runs whose configurations differ in the seed only are one method"
    return only(lead=lead, tables=table(caption, ["method", "seeds", "steps", "finished"], rows))


# -- results ---------------------------------------------------------------------------------------


def final_scores(method: Method) -> dict[str, list[float]]:
    """The last evaluation of each set by set, one value per run that has it."""
    scores: dict[str, list[float]] = {}
    for run in method.runs:
        for name, series in run.evaluations().items():
            scores.setdefault(name, []).append(float(series.values[-1]))
    return scores


def results(methods: Sequence[Method]) -> Block:
    """Final evaluations by set, and the mean over the sets with its interval and difference."""
    by_method = [final_scores(method) for method in methods]
    sets = list(dict.fromkeys(name for scores in by_method for name in scores))
    if not sets:
        return only(notes=["No run was evaluated on eval sets."])
    means = [[mean.values[-1] for run in m.runs if len(mean := mean_over_sets(run))] for m in methods]
    rows = [[name, *_best_marked([scores.get(name, []) for scores in by_method])] for name in sets]
    if len(sets) > 1:
        rows.append(["mean over sets", *_best_marked(means)])
    caption = "Last evaluation in percent, mean ± standard deviation over seeds; the highest mean is bold"
    found = table(caption, ["set", *(method.label for method in methods)], rows)
    notes = []
    if len({run.num_steps for method in methods for run in method.runs}) > 1:
        notes.append(
            "The runs are not at the same step, so their last evaluations are not of equal training."
        )
    if not all(len(values) >= 5 for values in means):
        notes.append("Fewer than five seeds: intervals are wide.")
    return only(notes=notes, tables=found + _against_first(methods, means))


def _best_marked(scores: Sequence[Sequence[float]]) -> list[object]:
    """A cell for the scores of each method over its seeds, which may be none."""
    spreads = [spread_of(values) if values else None for values in scores]
    best = max((spread.mean for spread in spreads if spread), default=0.0)
    return [DASH if not s else {"best": s.text()} if s.mean == best else s.text() for s in spreads]


def _against_first(methods: Sequence[Method], means: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    rows: list[list[object]] = []
    for method, values in zip(methods, means, strict=True):
        if not values:
            continue
        spread = spread_of(values)
        row = [method.label, spread.n, spread.text()]
        row.append(DASH if spread.ci95 is None else f"± {100 * spread.ci95:.1f}")
        if method is methods[0] or not means[0]:
            row += [DASH, DASH]
        else:
            gap = welch_difference(values, means[0])
            row.append(percent(gap.mean, gap.ci95, sign="+").replace("-", "−"))
            row.append(DASH if gap.p_t is None else f"{gap.p_t:.3f}")
        rows.append(row)
    header = ["method", "seeds", "mean over sets", "95 % interval", f"minus {methods[0].label}", "p"]
    caption = "Mean over sets in percent. Intervals are Student's t over seeds; difference and p are Welch's"
    if len(rows) == 1:
        return table(caption.split(";")[0], header[:4], [rows[0][:4]])
    return table(caption, header, rows)


# -- pass@k, prompts, costs ------------------------------------------------------------------------


def pass_at_k(methods: Sequence[Method]) -> Block:
    """One picture per benchmark that several samples were drawn for."""
    drawn = []
    for benchmark in dict.fromkeys(name for method in methods for run in method.runs for name in run.results):
        curves = pass_curves(methods, benchmark)
        if any(len(curve.x) > 1 for curve in curves):
            title = f"pass@k on {benchmark}"
            parts = [
                f"{c.label} {100 * c.mean[0]:.1f} % at k = {c.x[0]} to {100 * c.mean[-1]:.1f} % at k = {c.x[-1]}"
                for c in curves
            ]
            drawn.append(picture(pass_at_k_figure(curves, title), f"{title}: {'; '.join(parts)}."))
    return only(pictures=drawn)


def prompts(methods: Sequence[Method]) -> Block:
    """The solve-rate maps of the first run of each method."""
    firsts = [(method, attempt_map(method.runs[0].attempts)) for method in methods]
    maps = [(method, map_) for method, map_ in firsts if map_.has_solve_rates][:MOST_MAPS]
    if len(maps) < 2:
        return {}
    rows: list[list[Any]] = []
    for method, map_ in maps:
        first, last, best = _first_last_best(map_.solve_rate)
        solved = [int(np.sum(rates > 0)) for rates in (first, last, best)]
        rows.append([method.label, f"{len(first):,}", *solved, int(np.sum((first > 0) & (last == 0)))])
    alt = "Heat maps of solve rates by prompt and attempt, one per method: "
    alt += "; ".join(f"{row[0]} solved {row[4]} of {row[1]} at some attempt" for row in rows)
    seeds = ", ".join(shown(method.runs[0].seed) for method, _ in maps)
    caption = (
        f"One run of each method (seeds {seeds}), rows sorted by when {maps[0][0].label} first solved them."
    )
    figure = solve_rate_maps([(method.label, map_) for method, map_ in maps], "Solve rate per prompt")
    header = ["method", "prompts", "solved at first", "solved at last", "at some attempt", "lost again"]
    found = table("Prompts with a correct rollout at their first, last and any attempt", header, rows)
    return only(pictures=[picture(figure, alt, caption)], tables=found)


def _first_last_best(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve rates of the prompts that were graded at all: [Q, V] → [Q'] each."""
    graded = rates[np.isfinite(rates).any(axis=1)]
    known, rows = np.isfinite(graded), np.arange(len(graded))
    first, last = known.argmax(axis=1), known.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
    return graded[rows, first], graded[rows, last], np.nanmax(graded, axis=1)


def costs(methods: Sequence[Method]) -> Block:
    rows = []
    for method in methods:
        sampled, trained, wall_s = (
            float(np.mean([getattr(run, name) for run in method.runs]))
            for name in ("tokens_sampled", "tokens_trained", "wall_s")
        )
        seconds = [s.values.mean() for run in method.runs if len(s := run.series("time/step_s"))]
        row = [method.label, _steps(method), rounded(sampled), rounded(trained), short_time(wall_s)]
        rows.append([*row, f"{np.mean(seconds):.2f} s" if seconds else DASH])
    header = ["method", "steps", "tokens sampled", "tokens trained on", "time", "time of a step"]
    return only(tables=table("What a run cost, mean over seeds", header, rows))


def differences(methods: Sequence[Method]) -> Block:
    """The keys in which the methods' configurations differ."""
    firsts = [method.runs[0] for method in methods]
    keys = [key for key in differing_keys(firsts) if key not in ("run.name", "run.dir", "run.seed")]
    rows = [[key, *(shown(value_of(run, key)) for run in firsts)] for key in keys]
    unequal = ", ".join(key for key in keys if not is_of_method(key))
    notes = [f"Not taken as a difference of method: {unequal}."] if unequal else []
    return only(tables=table("Keys that differ", ["key", *(m.label for m in methods)], rows), notes=notes)


def every_run(methods: Sequence[Method]) -> Block:
    rows = []
    for method in methods:
        for run in method.runs:
            mean = mean_over_sets(run)
            last = f"{100 * mean.values[-1]:.1f} (step {mean.steps[-1]:,})" if len(mean) else DASH
            how_far = [f"{run.num_steps:,}", run.state, short_time(run.wall_s)]
            rows.append([run.name, method.label, shown(run.seed), *how_far, last])
    header = ["run", "method", "seed", "steps", "state", "time", "last evaluation"]
    return only(tables=table("Every run; the evaluation is the mean over sets", header, rows))


def _steps(method: Method) -> str:
    numbers = [run.num_steps for run in method.runs]
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


BLOCKS: dict[str, Callable[[Sequence[Method]], Block]] = {
    "Methods": methods_of,
    "Results": results,
    "pass@k": pass_at_k,
    "Prompts": prompts,
    "Costs": costs,
    "What differs": differences,
    "Runs": every_run,
}
