"""The tables of the report, as rows of text. A cell without runs is "–"; numbers are percent, ± half a 95 %
interval over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpt_ray.evaluation.compare import ALL as ALL_LEVELS
from hpt_ray.evaluation.compare import Comparison
from hpt_ray.evaluation.tests_of_difference import Difference, difference, holm
from hpt_ray.tools.report import Spread
from hpt_ray.tools.suite.collect import ALL, COSTS, ID, OOD, Results
from hpt_ray.tools.suite.paper_tables import BY_NAME, TABLE4, PaperTable
from hpt_ray.tools.suite.passes import BASE
from hpt_ray.tools.suite.suite import Settings
from hpt_ray.tools.suite.sweep import Choice

EMPTY = "–"


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: as many cells a row as in the header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Contrast:
    """The reference method minus another, by one measure on one model. `p_holm`: of all others on the model."""

    model: str
    method: str
    measure: str
    difference: Difference
    p_holm: float | None


def scores_table(results: Results, model: str) -> Rows:
    """Method × measure."""
    rows = []
    for method in results.methods:
        spreads = [results.spread(model, method, measure) for measure in results.measures]
        if any(spread is not None for spread in spreads):
            seeds = "" if method == BASE else str(len(results.of(model, method)))
            note = _star(results, method)
            rows.append([results.title(method) + note, *map(percent, spreads), seeds])
    title = results.suite.models[model].title
    return Rows(f"{title}: percent right", ["method", *results.measures, "seeds"], rows)


def costs_table(results: Results, model: str) -> Rows:
    """Method × cost of one run."""
    rows = []
    for method in results.methods:
        spreads = [results.cost(model, method, name) for name in COSTS]
        if method != BASE and any(spread is not None for spread in spreads):
            cells = [EMPTY if s is None else f"{s.mean:,.0f}" for s in spreads]
            rows.append([results.title(method) + _star(results, method), *cells])
    title = results.suite.models[model].title
    return Rows(f"{title}: cost of one run, mean over seeds", ["method", *COSTS], rows)


def contrasts(results: Results, model: str) -> list[Contrast]:
    """The reference against every other method, by each average."""
    reference = results.suite.keys.reference
    found: list[Contrast] = []
    for measure in (name for name in (ID, OOD, ALL) if name in results.measures):
        ours = results.by_seed(model, reference, measure)
        others = [name for name in results.methods if name not in (BASE, reference)]
        compared = {name: difference(ours, results.by_seed(model, name, measure)) for name in others}
        known = {name: diff for name, diff in compared.items() if diff is not None}
        corrected = holm([diff.p_t for diff in known.values()])
        found += [
            Contrast(model, name, measure, diff, p)
            for (name, diff), p in zip(known.items(), corrected, strict=True)
        ]
    return found


def contrasts_table(results: Results, model: str) -> Rows:
    """One row per other method and average."""
    reference = results.title(results.suite.keys.reference)
    rows = [
        [
            f"{results.title(c.method)}",
            c.measure,
            str(c.difference.n),
            signed(c.difference),
            p_text(c.difference.p_t),
            p_text(c.p_holm),
            p_text(c.difference.p_permutation),
        ]
        for c in contrasts(results, model)
    ]
    header = ["against", "measure", "seeds", "points", "p (t)", "p (t, Holm)", "p (sign flips)"]
    return Rows(f"{results.suite.models[model].title}: {reference} minus each other method", header, rows)


def paper_tables(results: Results) -> Iterator[tuple[PaperTable, Rows, Rows]]:
    """The paper's tables that the suite maps to: what both have, column by column; and the whole of the paper's."""
    for name, models in results.suite.keys.paper.items():
        present = [model for model in models if model in results.suite.models]
        yield BY_NAME[name], _beside(results, BY_NAME[name], present), _as_printed(BY_NAME[name])


def _beside(results: Results, table: PaperTable, models: Sequence[str]) -> Rows:
    """The averages, and the benchmarks that are sets of the suite too: the paper's number, then ours by model."""
    measures = {column: column for column in table.columns} | {table.id_average: ID, table.ood_average: OOD}
    shared = {column: measures[column] for column in table.columns if measures[column] in results.measures}
    header = ["method"]
    for column in shared:
        header += [f"{column}: paper", *(f"{results.suite.models[m].title}" for m in models)]
    rows = []
    for row in table.rows:
        cells = [row.title]
        for column, measure in shared.items():
            cells.append(f"{row.values[table.columns.index(column)]:.1f}")
            cells += [percent(results.spread(model, row.method, measure)) for model in models]
        rows.append(cells)
    return Rows(f"{table.title}. Paper: {table.model}", header, rows)


def _as_printed(table: PaperTable) -> Rows:
    rows = [[row.title, *(f"{value:.1f}" for value in row.values)] for row in table.rows]
    return Rows(f"{table.title}, {table.model}, as printed", ["method", *table.columns], rows)


def exclusive_table(results: Results, compared: Sequence[tuple[str, str, Sequence[Comparison]]]) -> Rows:
    """Ours of the paper's Table 4: (model, other method, comparisons), over all prompts of a benchmark."""
    reference = results.title(results.suite.keys.reference)
    rows = []
    for model, method, comparisons in compared:
        for c in comparisons:
            if c.level == ALL_LEVELS:
                shares = f"{100 * c.only_a / c.prompts:.1f}/{100 * c.only_b / c.prompts:.1f}"
                cells = [results.title(method), model, c.benchmark, str(c.prompts)]
                rows.append([*cells, f"+{c.only_a}/−{c.only_b}", shares])
    header = ["against", "model", "benchmark", "prompts", "+X/−Y", "percent"]
    return Rows(
        f"Exclusive solves: +X {reference} solves and the other does not, −Y the reverse", header, rows
    )


def paper_exclusive_table() -> Rows:
    """The paper's Table 4."""
    names = {"grpo": "GRPO", "luffy": "LUFFY"}
    rows = [
        [
            names[method],
            e.level,
            str(e.prompts),
            f"+{e.only_hpt}/−{e.only_other}",
            f"{100 * e.only_hpt / e.prompts:.1f}/{100 * e.only_other / e.prompts:.1f}",
        ]
        for method, levels in TABLE4.items()
        for e in levels
    ]
    header = ["against", "level", "prompts", "+X/−Y", "percent"]
    return Rows("Table 4 (paper): MATH-500, Qwen2.5-Math-7B, HPT against", header, rows)


def sweep_table(results: Results, choices: dict[tuple[str, str], Choice]) -> Rows:
    """Every try with its score on the validation sets, and the one chosen."""
    rows = []
    for (model, method), choice in choices.items():
        for i, tried in enumerate(choice.tries):
            score = "failed" if tried.score is None else f"{100 * tried.score:.1f}"
            mark = "" if i != choice.chosen else "chosen" + (" (at the edge)" if choice.at_edge else "")
            rows.append([results.title(method), model, settings_text(tried.settings), score, mark])
    return Rows("Tries on the validation sets", ["method", "model", "settings", "percent right", ""], rows)


def settings_text(settings: Settings) -> str:
    """`learning_rate 5e-04, rollout_coef 4`."""
    return (
        ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in settings.items())
        or "as given"
    )


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " then ".join(map(_short, value))
    if isinstance(value, dict):
        return " ".join(
            f"{k} {_short(v)}" if not isinstance(v, dict) else _short(v) for k, v in value.items()
        )
    return str(value)


def percent(spread: Spread | None) -> str:
    """`97.2 ± 1.3`, in percent."""
    if spread is None:
        return EMPTY
    interval = "" if spread.ci95 is None else f" ± {100 * spread.ci95:.1f}"
    return f"{100 * spread.mean:.1f}{interval}"


def signed(diff: Difference) -> str:
    """`+3.1 ± 1.2`, in points of percent."""
    interval = "" if diff.ci95 is None else f" ± {100 * diff.ci95:.1f}"
    return f"{100 * diff.mean:+.1f}{interval}".replace("-", "−")


def p_text(p: float | None) -> str:
    return EMPTY if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _star(results: Results, method: str) -> str:
    return " *" if method != BASE and results.suite.methods[method].budget else ""
