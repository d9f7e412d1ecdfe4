"""The page that compares several runs: methods beside each other, each the mean of its seeds.

In: `Method`s. Out: title, sections and introduction. A number in a table is the mean over seeds; `±` is one
sample standard deviation unless a table says otherwise. Final means the last evaluation of a run, not its best:
the best of many looks at a set is better than the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpt_ray.evaluation.statistics import BANDS, percent, spread_of, welch_difference
from hpt_ray.observe.step_line import short_time
from hpt_ray.tools.report.attempts import attempt_map, solve_rate_maps
from hpt_ray.tools.report.curves import curves_of, mean_over_sets, pass_curves
from hpt_ray.tools.report.figures import curves_figure, pass_at_k_figure
from hpt_ray.tools.report.html import (
    Html,
    Pictures,
    Section,
    details_html,
    grid,
    note_html,
    part,
    table_html,
)
from hpt_ray.tools.report.load import RunData, Series
from hpt_ray.tools.report.methods import DASH, Method, differing_keys, is_of_method, shown, value_of
from hpt_ray.tools.report.style import rounded, short

MOST_MAPS = 4  # heat maps beside each other
BAND = "std"
NOTHING = 1e-9  # what rounding leaves of a zero; no figure shows that
Metric = str | Callable[[RunData], Series]


@dataclass(frozen=True, slots=True)
class Lines:
    """What a figure of lines over steps is called and how it is drawn."""

    title: str
    unit: str
    share: bool | None = False  # None: where all values are between 0 and 1
    smooth: bool = True


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
    rows = []
    for method in methods:
        finished = f"{sum(run.state == 'done' for run in method.runs)} of {len(method.runs)}"
        rows.append([named(method), ", ".join(map(shown, method.seeds)), _steps(method), finished])
    caption = "Runs whose configurations differ in the seed only are one method"
    table = table_html(rows, ["method", "seeds", "steps", "finished"], caption)
    names = ", ".join(run.name for run in left_out)
    note = note_html(f"Left out, since no step of them is done: {names}.") if left_out else ""
    return part("lead", lead) + table + note


def named(method: Method) -> Html:
    """The method's name after its colour."""
    return part("tinted", method.label, method.color)


# -- results ---------------------------------------------------------------------------------------


def final_scores(method: Method) -> dict[str, list[float]]:
    """The last evaluation of each set by set, one value per run that has it."""
    scores: dict[str, list[float]] = {}
    for run in method.runs:
        for name, series in run.evaluations().items():
            scores.setdefault(name, []).append(float(series.values[-1]))
    return scores


def results(methods: Sequence[Method], pictures: Pictures) -> str:
    """Final evaluations by set, and the mean over the sets with its interval and difference."""
    by_method = [final_scores(method) for method in methods]
    sets = list(dict.fromkeys(name for scores in by_method for name in scores))
    if not sets:
        return note_html("No run was evaluated on eval sets.")
    means = [[mean.values[-1] for run in m.runs if len(mean := mean_over_sets(run))] for m in methods]
    rows = [[name, *_bold_best([scores.get(name, []) for scores in by_method])] for name in sets]
    if len(sets) > 1:
        rows.append(["mean over sets", *_bold_best(means)])
    caption = "Last evaluation in percent, mean ± standard deviation over seeds; the highest mean is bold"
    table = table_html(rows, ["set", *map(named, methods)], caption)
    steps = {run.num_steps for method in methods for run in method.runs}
    uneven = "The runs are not at the same step, so their last evaluations are not of equal training."
    return table + _against_first(methods, means) + (note_html(uneven) if len(steps) > 1 else "")


def _bold_best(scores: Sequence[Sequence[float]]) -> list[object]:
    """A cell for the scores of each method over its seeds, which may be none."""
    spreads = [spread_of(values) if values else None for values in scores]
    best = max((spread.mean for spread in spreads if spread), default=0.0)
    return [part("score", s.text(), s.mean == best) if s else DASH for s in spreads]


def _against_first(methods: Sequence[Method], means: Sequence[Sequence[float]]) -> str:
    rows: list[list[object]] = []
    for method, values in zip(methods, means, strict=True):
        if not values:
            continue
        spread = spread_of(values)
        row = [named(method), spread.n, spread.text()]
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
    few = "" if all(len(v) >= 5 for v in means) else note_html("Fewer than five seeds: intervals are wide.")
    return table_html(rows, header, caption) + few


# -- curves, prompts, costs ------------------------------------------------------------------------


def learning(methods: Sequence[Method], pictures: Pictures) -> str:
    drawn = [_picture(name, *compared, methods, pictures) for name, compared in COMPARED.items()]
    sets = dict.fromkeys(name for method in methods for run in method.runs for name in run.evaluations())
    by_set = [
        _picture(
            f"evaluation_{i}", _scores(f"Evaluation: {name}", ""), f"eval/{name}/mean", methods, pictures
        )
        for i, name in enumerate(sets)
    ]
    several = details_html("Evaluations by set", grid(*filter(None, by_set))) if len(sets) > 1 else ""
    note = f"Bands: {BANDS[BAND]}. Curves of steps are rolling means. Thin lines: single seeds that went further."
    return note_html(note) + grid(*filter(None, drawn)) + several


def _picture(name: str, lines: Lines, metric: Metric, methods: Sequence[Method], pictures: Pictures) -> str:
    """Empty where no method has values that are more than rounding."""
    curves = curves_of(methods, metric, band=BAND, smooth=lines.smooth)
    if not any(np.any(np.abs(curve.mean) > NOTHING) for curve in curves):
        return ""
    figure = curves_figure(curves, lines.title, lines.unit, share=lines.share)
    found = {curve.label: Series(curve.x, curve.mean) for curve in curves}
    return pictures.add(name, figure, alt_of(lines.title, lines.unit, found))


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


def _scores(title: str, over: str) -> Lines:
    return Lines(title, f"mean score{over}", share=None, smooth=False)


def offline_ratio(run: RunData) -> Series:
    """Σβ/Σ(α + β); of older runs the share of prompts with a demonstration, which the switch makes the same."""
    by_weight = run.series("selection/demo_share")
    return by_weight if len(by_weight) else run.series("selection/demo_prompt_ratio")


COMPARED: dict[str, tuple[Lines, Metric]] = {
    "evaluations": (_scores("Evaluations", " over the eval sets"), mean_over_sets),
    "reward": (Lines("Reward", "mean score of the graded rollouts"), "reward/mean"),
    "offline_ratio": (Lines("Offline ratio", "weight of demonstrations", share=True), offline_ratio),
    "entropy": (Lines("Entropy", "nats per response token, of what trained"), "policy/entropy"),
    "length": (Lines("Response length", "mean tokens of a rollout"), "rollout/length_mean"),
    "grad_norm": (Lines("Gradient norm", "global, before clipping"), "optim/grad_norm"),
    "step_time": (Lines("Time of a step", "seconds, without evaluation"), "time/step_s"),
}


def pass_at_k(methods: Sequence[Method], pictures: Pictures) -> str:
    """One figure per benchmark that several samples were drawn for."""
    drawn = []
    benchmarks = dict.fromkeys(name for method in methods for run in method.runs for name in run.results)
    for number, benchmark in enumerate(benchmarks):
        curves = pass_curves(methods, benchmark, band=BAND)
        if any(len(curve.x) > 1 for curve in curves):
            title = f"pass@k on {benchmark}"
            parts = [
                f"{c.label} {100 * c.mean[0]:.1f} % at k = {c.x[0]} to {100 * c.mean[-1]:.1f} % at k = {c.x[-1]}"
                for c in curves
            ]
            figure = pass_at_k_figure(curves, title)
            drawn.append(pictures.add(f"pass_at_k_{number}", figure, f"{title}: {'; '.join(parts)}."))
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
    table = table_html(rows, header, "Prompts with a correct rollout at their first, last and any attempt")
    return grid(pictures.add("prompts", figure, alt, caption), part("box", table))


def _first_last_best(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve rates of the prompts that were graded at all: [Q, V] → [Q'] each."""
    graded = rates[np.isfinite(rates).any(axis=1)]
    known, rows = np.isfinite(graded), np.arange(len(graded))
    first, last = known.argmax(axis=1), known.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
    return graded[rows, first], graded[rows, last], np.nanmax(graded, axis=1)


def costs(methods: Sequence[Method], pictures: Pictures) -> str:
    rows = []
    for method in methods:
        sampled, trained, wall_s = (
            float(np.mean([getattr(run, name) for run in method.runs]))
            for name in ("tokens_sampled", "tokens_trained", "wall_s")
        )
        seconds = [s.values.mean() for run in method.runs if len(s := run.series("time/step_s"))]
        row = [named(method), _steps(method), rounded(sampled), rounded(trained), short_time(wall_s)]
        rows.append([*row, f"{np.mean(seconds):.2f} s" if seconds else DASH])
    header = ["method", "steps", "tokens sampled", "tokens trained on", "time", "time of a step"]
    return table_html(rows, header, "What a run cost, mean over seeds")


def differences(methods: Sequence[Method], pictures: Pictures) -> str:
    """The keys in which the methods' configurations differ."""
    firsts = [method.runs[0] for method in methods]
    keys = [key for key in differing_keys(firsts) if key not in ("run.name", "run.dir", "run.seed")]
    if not keys:
        return ""
    rows = [[key, *(shown(value_of(run, key)) for run in firsts)] for key in keys]
    unequal = ", ".join(key for key in keys if not is_of_method(key))
    table = table_html(
        rows, ["key", *map(named, methods)], "Keys that differ", align="l" * (len(methods) + 1)
    )
    return table + (note_html(f"Not taken as a difference of method: {unequal}.") if unequal else "")


def runs(methods: Sequence[Method], pictures: Pictures) -> str:
    rows = []
    for method in methods:
        for run in method.runs:
            mean = mean_over_sets(run)
            last = f"{100 * mean.values[-1]:.1f} (step {mean.steps[-1]:,})" if len(mean) else DASH
            how_far = [f"{run.num_steps:,}", run.state, short_time(run.wall_s)]
            rows.append([run.name, named(method), shown(run.seed), *how_far, last])
    header = ["run", "method", "seed", "steps", "state", "time", "last evaluation"]
    return table_html(rows, header, "Every run; the evaluation is the mean over sets", align="llrrlrr")


def _steps(method: Method) -> str:
    numbers = [run.num_steps for run in method.runs]
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
