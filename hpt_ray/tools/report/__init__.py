"""A page about one run or several: what was learned, from which data, at what cost.

Everything is drawn from run folders (`observe/run_folder.py`) and from finished evaluations. The parts are
there for other pages too: load, group, draw, and HTML.
"""

from hpt_ray.evaluation.seed_stats import Spread, spread_of
from hpt_ray.tools.report.curves import Curve, curves_figure, curves_of
from hpt_ray.tools.report.html import (
    Html,
    Pictures,
    Section,
    escape,
    figure_html,
    grid,
    page,
    swatch,
    table_html,
)
from hpt_ray.tools.report.load import RunData, Series, Visit, load_run
from hpt_ray.tools.report.methods import Method, group_runs
from hpt_ray.tools.report.pass_at_k import pass_at_k_figure, pass_curve, pass_curves
from hpt_ray.tools.report.visits import VisitMap, solve_rate_figure, solve_rate_maps, visit_map

__all__ = [
    "Curve",
    "Html",
    "Method",
    "Pictures",
    "RunData",
    "Section",
    "Series",
    "Spread",
    "Visit",
    "VisitMap",
    "curves_figure",
    "curves_of",
    "escape",
    "figure_html",
    "grid",
    "group_runs",
    "load_run",
    "page",
    "pass_at_k_figure",
    "pass_curve",
    "pass_curves",
    "solve_rate_figure",
    "solve_rate_maps",
    "spread_of",
    "swatch",
    "table_html",
    "visit_map",
]
