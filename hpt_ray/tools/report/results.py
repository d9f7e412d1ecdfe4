"""What methods came to on held-out sets: final scores, means over seeds, differences. Methods → HTML tables.

Final means the last evaluation of a run, not its best: the best of many looks at a set is better than the
model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hpt_ray.evaluation.seed_stats import Spread, spread_of
from hpt_ray.tools.report.html import Html, Pictures, escape, note_html, swatch, table_html
from hpt_ray.tools.report.methods import Method
from hpt_ray.tools.report.run_figures import mean_over_sets

DASH = "–"


def named(method: Method) -> Html:
    """The method's name after its colour."""
    return Html(swatch(method.color) + escape(method.label))


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of one method minus that of another, half a 95 % interval and p, both by Welch's t test."""

    value: float
    ci95: float | None
    p: float | None


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Interval and p are None where a side has one seed, or neither scatters."""
    value = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2 or (np.ptp(ours) == 0 and np.ptp(theirs) == 0):
        return Difference(value, None, None)
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(0.95)
    return Difference(value, float(interval.high - interval.low) / 2, float(test.pvalue))


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
        return note_html("No run was evaluated on held-out sets.")
    rows: list[list[object]] = []
    for name in sets:
        spreads = [spread_of(scores[name]) if name in scores else None for scores in by_method]
        rows.append([name, *_cells(spreads)])
    means = [[mean.values[-1] for run in m.runs if len(mean := mean_over_sets(run))] for m in methods]
    if len(sets) > 1:
        rows.append(["mean over sets", *_cells([spread_of(values) if values else None for values in means])])
    header = ["set", *(named(method) for method in methods)]
    caption = "Last evaluation in percent, mean ± standard deviation over seeds; the highest mean is bold"
    notes = _uneven(methods)
    return table_html(rows, header, caption) + _against_first(methods, means) + notes


def _cells(spreads: Sequence[Spread | None]) -> list[object]:
    best = max((s.mean for s in spreads if s), default=0.0)
    texts = [escape(s.text()) if s else Html(DASH) for s in spreads]
    is_best = [bool(s) and s is not None and s.mean == best for s in spreads]
    return [Html(f'<span class="best">{t}</span>') if b else t for t, b in zip(texts, is_best, strict=True)]


def _against_first(methods: Sequence[Method], means: Sequence[Sequence[float]]) -> str:
    rows = []
    for method, values in zip(methods, means, strict=True):
        if not values:
            continue
        spread = spread_of(values)
        gap = difference(values, means[0]) if method is not methods[0] and means[0] else None
        rows.append(
            [
                named(method),
                spread.n,
                spread.text(),
                DASH if spread.ci95 is None else f"± {100 * spread.ci95:.1f}",
                DASH if gap is None else _signed(gap),
                DASH if gap is None or gap.p is None else f"{gap.p:.3f}",
            ]
        )
    header = ["method", "seeds", "mean over sets", "95 % interval", f"minus {methods[0].label}", "p"]
    caption = "Mean over sets in percent. Intervals are Student's t over seeds; difference and p are Welch's"
    few = "" if all(len(v) >= 5 for v in means) else note_html("Fewer than five seeds: intervals are wide.")
    return table_html(rows, header, caption) + few


def _signed(gap: Difference) -> str:
    half = "" if gap.ci95 is None else f" ± {100 * gap.ci95:.1f}"
    return f"{100 * gap.value:+.1f}{half}".replace("-", "−")


def _uneven(methods: Sequence[Method]) -> str:
    steps = {run.num_steps for method in methods for run in method.runs}
    text = "The runs are not at the same step, so their last evaluations are not of equal training."
    return note_html(text) if len(steps) > 1 else ""
