"""A page about one run or several: what was learned, from which data, at what cost.

Everything is drawn from run folders (`observe/run_folder.py`) and from finished evaluations. The parts are
there for other pages too: load, group, draw, and HTML.
"""

from hpt_ray.evaluation.statistics import Spread, spread_of
from hpt_ray.tools.report.attempts import GAIN, attempt_map, gain_map, solve_rate_maps
from hpt_ray.tools.report.curves import chances, curves_of
from hpt_ray.tools.report.figures import Curve, curves_figure, pass_at_k_figure
from hpt_ray.tools.report.html import (
    Html,
    Pictures,
    Section,
    details_html,
    escape,
    figure_html,
    grid,
    note_html,
    page,
    table_html,
)
from hpt_ray.tools.report.load import RunData, Series, load_run
from hpt_ray.tools.report.methods import Method, group_runs

__all__ = [
    "GAIN",
    "Curve",
    "Html",
    "Method",
    "Pictures",
    "RunData",
    "Section",
    "Series",
    "Spread",
    "attempt_map",
    "chances",
    "curves_figure",
    "curves_of",
    "details_html",
    "escape",
    "figure_html",
    "gain_map",
    "grid",
    "group_runs",
    "load_run",
    "note_html",
    "page",
    "pass_at_k_figure",
    "solve_rate_maps",
    "spread_of",
    "table_html",
]
