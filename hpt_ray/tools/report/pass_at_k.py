"""pass@k of finished models: curves over k, per benchmark and method, from the counts per prompt.

In: the result files of `python -m hpt_ray.cli.evaluate`. A curve of several seeds is the mean of theirs, with the
band of `stats.BANDS`; one of a single run has the 95 % interval over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from hpt_ray.evaluation.estimates import default_ks, mean_over_prompts, pass_at_k
from hpt_ray.evaluation.results import PromptResult
from hpt_ray.evaluation.seed_stats import BANDS
from hpt_ray.tools.report.curves import Curve, curves_figure
from hpt_ray.tools.report.html import Pictures, grid, table_html
from hpt_ray.tools.report.load import Results
from hpt_ray.tools.report.methods import Method
from hpt_ray.tools.report.style import BLUE, short


def chances(rows: Sequence[PromptResult]) -> tuple[np.ndarray, np.ndarray]:
    """k [K], and for each prompt the chance that one of k samples is right [K, Q]; for the powers of two
    up to the fewest samples that a prompt has."""
    counts = np.array([(row.n, row.correct) for row in rows])
    ks = np.array(default_ks(int(counts[:, 0].min())))
    found = np.zeros((len(ks), len(rows)))
    for n in np.unique(counts[:, 0]):
        of_n = counts[:, 0] == n
        for i, k in enumerate(ks):
            found[i, of_n] = pass_at_k(int(n), counts[of_n, 1], int(k))
    return ks, found


def pass_curve(rows: Sequence[PromptResult]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k [K], pass@k [K] and half its 95 % interval over prompts [K], for the k of `chances`."""
    ks, found = chances(rows)
    estimates = [mean_over_prompts(of_k) for of_k in found]
    return ks, np.array([e.value for e in estimates]), np.array([e.half_width or 0.0 for e in estimates])


def pass_curves(methods: Sequence[Method], benchmark: str, *, band: str = "std") -> list[Curve]:
    """One curve per method whose every run was evaluated on the benchmark."""
    curves = []
    for method in methods:
        found = [pass_curve(rows) for run in method.runs if (rows := run.results.get(benchmark))]
        if not found or len(found) < len(method.runs):
            continue
        num = min(len(ks) for ks, _, _ in found)
        values = np.stack([value[:num] for _, value, _ in found])
        half = found[0][2][:num]
        mean = values.mean(axis=0)
        low, high = BANDS[band][0](values) if len(found) > 1 else (mean - half, mean + half)
        curves.append(Curve(method.label, method.color, found[0][0][:num], mean, low, high, dash=method.dash))
    return curves


def pass_at_k_figure(curves: Sequence[Curve], title: str) -> Figure:
    """Curves over k, which grows by doubling."""
    figure = curves_figure(
        curves, title, "share of prompts solved by one of k samples", x_label="k", share=True
    )
    axes = figure.axes[0]
    axes.set_xscale("log", base=2)
    ks = sorted({int(k) for curve in curves for k in curve.x})
    axes.set_xticks(ks[:: -(-len(ks) // 8)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    return figure


def pass_at_k_html(results: Results, pictures: Pictures) -> str:
    """Figure and table of one model's evaluations; empty without any."""
    if not results:
        return ""
    drawn, rows = [], []
    for benchmark, of_benchmark in results.items():
        ks, values, half = pass_curve(of_benchmark)
        k, n = int(ks[-1]), min(row.n for row in of_benchmark)
        mean = mean_over_prompts(np.array([row.correct / row.n for row in of_benchmark]))
        rows.append(
            [benchmark, f"{len(of_benchmark):,}", n, percent(mean.value, mean.half_width)]
            + ([f"{percent(values[-1], half[-1])} @{k}"] if k > 1 else ["–"])
        )
        if k > 1:
            curve = Curve("", BLUE, ks, values, values - half, values + half)
            figure = pass_at_k_figure([curve], f"pass@k on {benchmark}")
            drawn.append(
                pictures.add(f"pass_at_k_{_file_name(benchmark)}", figure, pass_alt(benchmark, [curve]))
            )
    header = ["benchmark", "prompts", "samples", "mean", "pass@k"]
    caption = "The finished model, in percent ± half a 95 % interval over prompts"
    return table_html(rows, header, caption) + grid(*drawn)


def pass_alt(benchmark: str, curves: Sequence[Curve]) -> str:
    parts = [
        f"{curve.label} {100 * curve.mean[0]:.1f} % at k = {curve.x[0]} to {100 * curve.mean[-1]:.1f} % at "
        f"k = {curve.x[-1]}".strip()
        for curve in curves
    ]
    return f"pass@k on {benchmark}: {'; '.join(parts)}."


def percent(value: float, half_width: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")


def benchmarks_of(methods: Sequence[Method]) -> list[str]:
    """All benchmarks that some run was evaluated on."""
    results: list[Mapping[str, object]] = [run.results for method in methods for run in method.runs]
    return list(dict.fromkeys(name for of_run in results for name in of_run))


def _file_name(benchmark: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in benchmark)
