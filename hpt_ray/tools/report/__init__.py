"""A page about one run or several: what was learned, from which data, at what cost.

Everything is drawn from run folders (`observe/run_folder.py`) and from finished evaluations. The parts are
there for other pages too: load, group, draw, and HTML.
"""

from hpt_ray.evaluation.seed_stats import Spread, spread_of
from hpt_ray.tools.report.attempts import AttemptMap, attempt_map, solve_rate_figure, solve_rate_maps
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
from hpt_ray.tools.report.load import Attempt, RunData, Series, load_run
from hpt_ray.tools.report.methods import Method, group_runs
from hpt_ray.tools.report.pass_at_k import pass_at_k_figure, pass_curve, pass_curves

__all__ = [
    "Attempt",
    "AttemptMap",
    "Curve",
    "Html",
    "Method",
    "Pictures",
    "RunData",
    "Section",
    "Series",
    "Spread",
    "attempt_map",
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
]
