"""What was measured, for people: the plane bias × noise with a path a method, and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from hpt_ray.tools.measure.estimate import UNKNOWN, Interval
from hpt_ray.tools.report import style
from hpt_ray.tools.report.html import Html, Pictures, Section, grid, note_html, page, table_html

MARKERS = ("o", "s", "^", "D")
HEIGHT = 4.2  # inches
COLUMNS = {
    "scale": "scale s",
    "cosine": "cosine",
    "bias": "bias",
    "gap": "|m − t|²/|t|²",
    "variance": "variance",
    "noise": "noise",
    "snr_per_sample": "SNR per sample",
    "snr_per_second": "SNR per second",
}
READ = (
    "Each point is a method's gradient on the same prompts and rollouts. To the right: how much of the true policy "
    "gradient no learning rate gets back (1 − cos²). Upwards: the variance of one prompt's gradient over its squared "
    "mean, which is how many prompts a step needs for as much signal as noise. Bars are 95 % intervals. What the data "
    "do not determine has no point, and a dash in the table. Several models are joined by a line, in the order given."
)

Found = Mapping[str, Any]  # of one model, from `run.measure`


def interval_of(found: Found, set_name: str, method: str, quantity: str) -> Interval:
    """As it was measured; `UNKNOWN` also where a set has too few prompts."""
    numbers = found["sets"][set_name]["methods"].get(method, {}).get(quantity)
    return UNKNOWN if numbers is None else Interval(**numbers)


def plane_figure(stages: Sequence[Found], set_name: str) -> Figure:
    """Bias to the right, noise upwards, a path a method over the models. Names stand at the right."""
    methods = list(stages[0]["sets"]["all"]["methods"])
    sizes = " → ".join(str(found["sets"][set_name]["prompts"]) for found in stages)
    subtitle = f"{sizes} prompts; noise variance/|m|² over bias 1 − cos²"
    figure, axes = style.panel(f"{set_name} prompts".capitalize(), subtitle, height=HEIGHT)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(style.short)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel("bias", **style.plain(color=style.SOFT))
    ends = []
    for name, (color, dash) in zip(methods, style.method_styles(methods), strict=True):
        path = [
            (bias, noise)
            for found in stages
            for bias, noise in [[interval_of(found, set_name, name, q) for q in ("bias", "noise")]]
            if bias.known and noise.known and noise.value > 0
        ]
        if path:
            _draw(axes, path, color, MARKERS[style.DASHES.index(dash)])
            ends.append((path[-1][0].value, path[-1][1].value, name, color))
    if ends:
        _label(axes, ends)
    return figure


def _draw(axes: Axes, path: Sequence[tuple[Interval, Interval]], color: str, marker: str) -> None:
    xs, ys = ([each[k].value for each in path] for k in (0, 1))
    axes.plot(xs, ys, color=color, linewidth=1.0, alpha=0.6)
    reach = [
        [[i.value - max(i.low, least) for i in side], [i.high - i.value for i in side]]
        for side, least in (([p[0] for p in path], -0.04), ([p[1] for p in path], 1e-3))
    ]
    across, upwards = (np.maximum(side, 0) for side in reach)
    axes.errorbar(
        xs, ys, xerr=across, yerr=upwards, fmt=marker, color=color, markersize=4.5, elinewidth=0.7, alpha=0.9
    )


def _label(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names in a column at the right, each joined to its last point."""
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, 0.48, box.height))
    ordered = sorted(ends, key=lambda end: end[1])
    to_axes = axes.transAxes.inverted()
    heights = to_axes.transform(axes.transData.transform([end[:2] for end in ordered]))[:, 1]
    line = 1.2 * style.TEXT_PT / 72 / (HEIGHT * box.height)
    line = min(line, 1.05 / len(ordered))
    for height, (x, y, name, color) in zip(style.move_apart(heights, line, 1.0), ordered, strict=True):
        axes.annotate(
            style.abbreviated(name, 26),
            (x, y),
            (1.04, height),
            textcoords="axes fraction",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.4,
                "alpha": 0.6,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
            **style.plain(color=style.INK),
        )


def write_page(result: Mapping[str, Any], pictures: Pictures) -> str:
    """The page of all models, as HTML; the figures are written too."""
    stages = result["models"]
    shown = [name for name, found in stages[-1]["sets"].items() if found["methods"]]
    planes = [
        pictures.add(
            f"plane-{name}", plane_figure(stages, name), f"bias and noise of each method on {name} prompts"
        )
        for name in shown
    ]
    sections = [Section("Bias and noise", grid(*planes) + note_html(READ))]
    sections += [
        Section(f"{found['name']}: {name} prompts", _table(found, name))
        for found in stages
        for name in shown
        if found["sets"][name]["methods"]
    ]
    return page("The meter", sections, _intro(result))


def _table(found: Found, set_name: str) -> Html:
    part = found["sets"][set_name]
    rows = [
        (name, *(str(interval_of(found, set_name, name, quantity)) for quantity in COLUMNS))
        for name in part["methods"]
    ]
    caption = f"{part['prompts']} prompts, solve rate {part['solve_rate']:.2f}"
    return table_html(rows, ("method", *COLUMNS.values()), caption)


def _intro(result: Mapping[str, Any]) -> str:
    facts = "; ".join(f"{name} {value}" for name, value in result["asked"].items())
    costs = ", ".join(
        f"{found['name']}: {found['cost']['seconds']:.0f} s for {found['cost']['rollouts']:,} rollouts"
        for found in result["models"]
    )
    return note_html(f"{facts}. {costs}.")


def terminal_table(found: Found) -> Table:
    """The numbers without their intervals but for scale and bias, as wide as a terminal."""
    part = found["sets"]["all"]
    table = Table("method", "scale", "bias", "cosine", "noise", "SNR/sample", "SNR/s")
    for name in part["methods"]:
        cells = {q: interval_of(found, "all", name, q) for q in COLUMNS}
        short = (cells[q].value for q in ("cosine", "noise", "snr_per_sample", "snr_per_second"))
        table.add_row(
            name,
            str(cells["scale"]),
            str(cells["bias"]),
            *("–" if math.isnan(v) else f"{v:.3g}" for v in short),
        )
    table.caption = f"{found['name']}, all: {part['prompts']} prompts"
    return table
