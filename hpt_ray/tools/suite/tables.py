"""The tables of the report, as rows of text. A cell without runs is "–"; numbers are percent, ± half a 95 %
interval by `evaluation.mixed`: over seeds and prompts, and over bases where a model has several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpt_ray.evaluation.mixed import paired
from hpt_ray.evaluation.report import ALL as ALL_LEVELS
from hpt_ray.evaluation.report import Comparison
from hpt_ray.evaluation.statistics import Difference, holm, percent
from hpt_ray.tools.report import Spread
from hpt_ray.tools.suite.collect import COSTS, ID, OOD, Results
from hpt_ray.tools.suite.matrix import Choice, Pair
from hpt_ray.tools.suite.paper_tables import BY_NAME, TABLE4, TABLE4_BENCHMARK, PaperTable
from hpt_ray.tools.suite.passes import BASE
from hpt_ray.tools.suite.suite import Settings

EMPTY = "–"


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: as many cells a row as in the header. `align`: see `table_html`."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = ""


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

    def cell(method: str, column: str) -> str:
        if column == "seeds":
            return "" if method == BASE else str(len(results.of(model, method)))
        return mean_text(results.spread(model, method, column))

    return _by_method(results, model, "percent correct", [*results.measures, "seeds"], cell)


def costs_table(results: Results, model: str) -> Rows:
    """Method × cost of one run."""

    def cell(method: str, column: str) -> str:
        spread = results.spread(model, method, column)
        return EMPTY if spread is None else f"{spread.mean:,.0f}"

    return _by_method(results, model, "cost of one run, mean over seeds", COSTS, cell)


def _by_method(
    results: Results, model: str, what: str, columns: Sequence[str], cell: Callable[[str, str], str]
) -> Rows:
    """A row for each method that has something in a column."""
    present = [m for m in results.methods if any(results.values(model, m, column) for column in columns)]
    rows = [[results.starred(m), *(cell(m, column) for column in columns)] for m in present]
    return Rows(f"{results.model_title(model)}: {what}", ["method", *columns], rows)


def contrasts(results: Results, model: str) -> list[Contrast]:
    """The reference against every other method, by each average."""
    reference = results.suite.keys.reference
    found: list[Contrast] = []
    for measure in results.groups:
        ours = results.values(model, reference, measure)
        others = [name for name in results.methods if name not in (BASE, reference)]
        compared = {name: paired(ours, results.values(model, name, measure)) for name in others}
        known = {name: diff for name, diff in compared.items() if diff is not None}
        corrected = holm([diff.p_t for diff in known.values()])
        found += [
            Contrast(model, name, measure, diff, p)
            for (name, diff), p in zip(known.items(), corrected, strict=True)
        ]
    return found


def contrasts_table(results: Results, model: str) -> Rows:
    """One row per other method and average."""
    rows = []
    for c in contrasts(results, model):
        diff = c.difference
        ps = map(p_text, (diff.p_t, c.p_holm, diff.p_permutation))
        rows.append(
            [results.title(c.method), c.measure, str(diff.n), signed(diff.mean, diff.ci95), diff.over, *ps]
        )
    header = ["against", "measure", "runs", "points", "over", "p", "p (Holm)", "p (sign flips)"]
    reference = results.title(results.suite.keys.reference)
    return Rows(
        f"{results.model_title(model)}: {reference} minus each other method", header, rows, "llrrlrrr"
    )


def paper_tables(results: Results) -> Iterator[tuple[PaperTable, Rows, Rows]]:
    """The paper's tables that the suite maps to: what both have, column by column; and the whole of the paper's."""
    for name, models in results.suite.keys.paper.items():
        if name not in BY_NAME:
            continue  # Table 4 has a form of its own
        table, present = BY_NAME[name], [model for model in models if model in results.suite.models]
        rows = [[row.title, *(f"{value:.1f}" for value in row.values)] for row in table.rows]
        printed = Rows(f"{table.title}, {table.model}, as printed", ["method", *table.columns], rows)
        yield table, _beside(results, table, present), printed


def _beside(results: Results, table: PaperTable, models: Sequence[str]) -> Rows:
    """The averages, and the benchmarks that are sets of the suite too: the paper's number, then ours by model."""
    averages = {table.id_average: ID, table.ood_average: OOD}
    shared = [(i, column, averages.get(column, column)) for i, column in enumerate(table.columns)]
    shared = [(i, column, measure) for i, column, measure in shared if measure in results.measures]
    titles = [results.model_title(model) for model in models]
    header = ["method", *(name for _, column, _ in shared for name in (f"{column}: paper", *titles))]
    rows = []
    for row in table.rows:
        cells = [row.title]
        for i, _, measure in shared:
            cells.append(f"{row.values[i]:.1f}")
            cells += [mean_text(results.spread(model, row.method, measure)) for model in models]
        rows.append(cells)
    return Rows(f"{table.title}. Paper: {table.model}", header, rows)


def exclusive_table(results: Results, compared: Sequence[tuple[str, str, Sequence[Comparison]]]) -> Rows:
    """Ours of the paper's Table 4: (model, other method, comparisons). MATH-500 level by level, with the paper's
    numbers where the suite asks for them; other benchmarks over all prompts."""
    beside = results.suite.keys.paper.get("table4", [])
    rows = []
    for model, method, comparisons in compared:
        paper = TABLE4.get(method, {}) if model in beside else {}
        for c in comparisons:
            by_level = c.benchmark == TABLE4_BENCHMARK
            if c.level == ALL_LEVELS or by_level:
                printed = paper.get(c.level.removeprefix("Level "), ()) if by_level else ()
                of_paper = _exclusive(*printed)[1:] if printed else [EMPTY, EMPTY]
                where = [results.title(method), results.model_title(model), c.benchmark, c.level]
                rows.append(
                    [*where, *_exclusive(c.prompts, c.only_a, c.only_b), *of_paper[: 2 * bool(beside)]]
                )
    header = ["against", "model", "benchmark", "level", "prompts", "+X/−Y", "percent"]
    header += ["paper", "paper, percent"] if beside else []
    reference = results.title(results.suite.keys.reference)
    caption = f"Exclusive solves (Table 4): +X {reference} solves and the other does not, −Y the reverse"
    return Rows(caption, header, rows, "llllrrrrr"[: len(header)])


def _exclusive(prompts: int, only_a: int, only_b: int) -> list[str]:
    shares = f"{100 * only_a / prompts:.1f}/{100 * only_b / prompts:.1f}"
    return [str(prompts), f"+{only_a}/−{only_b}", shares]


def sweep_table(results: Results, choices: Mapping[Pair, Choice]) -> Rows:
    """Every try with its score on the validation sets, and the one chosen."""
    rows = []
    for (model, method), choice in choices.items():
        for i, tried in enumerate(choice.tries):
            score = "failed" if tried.score is None else f"{100 * tried.score:.1f}"
            mark = (
                ""
                if i != choice.chosen
                else "chosen" + (f" (at the edge: {', '.join(choice.at_edge)})" if choice.at_edge else "")
            )
            rows.append([results.title(method), model, settings_text(tried.settings), score, mark])
    header = ["method", "model", "settings", "percent correct", ""]
    return Rows("Tries on the validation sets", header, rows, "lllrl")


def settings_text(settings: Settings) -> str:
    """`learning_rate 5e-04, rollout_coef 4`."""
    named = [f"{name.rpartition('.')[2]} {_short(value)}" for name, value in settings.items()]
    return ", ".join(named) or "as given"


def _short(value: object) -> str:
    match value:
        case float():
            return f"{value:g}"
        case list():
            return " then ".join(map(_short, value))
        case dict():
            inner = value.items()
            return " ".join(_short(v) if isinstance(v, dict) else f"{k} {_short(v)}" for k, v in inner)
    return str(value)


def mean_text(spread: Spread | None) -> str:
    """`97.2 ± 1.3`, in percent."""
    return EMPTY if spread is None else percent(spread.mean, spread.ci95)


def signed(value: float, ci95: float | None) -> str:
    """`+3.1 ± 1.2`, in points of percent."""
    return percent(value, ci95, sign="+").replace("-", "−")


def p_text(p: float | None) -> str:
    return EMPTY if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
