"""One page and one file of numbers about a suite: report.html with its PNGs, and results.json.

In: a `Done`. What is missing is named at the top, not passed over. All numbers of the page are in
results.json, with the suite, the seeds, the configuration of every run, the versions and the machine.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from hpt_ray.config.references import public
from hpt_ray.evaluation.report import Comparison, as_json, compare, version_of, versions
from hpt_ray.evaluation.results import read_results
from hpt_ray.observe.run_folder import write_atomic
from hpt_ray.tools.report import (
    Html,
    Pictures,
    Section,
    details_html,
    escape,
    note_html,
    page,
    table_html,
)
from hpt_ray.tools.suite import tables
from hpt_ray.tools.suite.collect import Results, collect
from hpt_ray.tools.suite.dynamics import Finding, findings
from hpt_ray.tools.suite.figures import figures_of, pass_figures
from hpt_ray.tools.suite.matrix import flat
from hpt_ray.tools.suite.paper_tables import TABLE4_NOTE
from hpt_ray.tools.suite.passes import BASE, FINAL, PASS, Passes, read_passes
from hpt_ray.tools.suite.runner import Done
from hpt_ray.tools.suite.tables import Rows

Exclusive = list[tuple[str, str, list[Comparison]]]  # model, other method, comparisons
Block = Rows | Html | str  # a table, HTML, or the text of a note
OF_ONE_RUN = ("run.dir", "run.name", "run.seed")


def write_report(done: Done) -> Path:
    """Write results.json, figures/ and report.html into the suite's folder; the path of the page."""
    out = done.suite.out
    out.mkdir(parents=True, exist_ok=True)
    results, passes, exclusive = collect(done), read_passes(done.evaluations), exclusive_solves(done)
    found = findings(results, passes)
    numbers = results_json(done, results, found, exclusive, passes)
    write_atomic(out / "results.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    pictures = Pictures(out / "figures")
    parts: dict[str, Iterable[Block]] = {
        "Results": _results(results),
        "Differences": _differences(results),
        "Claims of the paper": _findings(results, found),
        "The paper's tables": _paper(results, exclusive),
        **{
            f"Course of training: {keys.title}": [figures_of(results, model, pictures)]
            for model, keys in done.suite.models.items()
        },
        "pass@k": [pass_figures(results, passes, pictures)],
        "Tuning": _tuning(done, results),
        "Conditions": _conditions(done, numbers),
    }
    sections = [Section(title, _html(blocks)) for title, blocks in parts.items()]
    path = out / "report.html"
    write_atomic(path, page(done.suite.keys.title, [s for s in sections if s.html], _intro(done, results)))
    return path


def exclusive_solves(done: Done) -> Exclusive:
    """The reference against every other evaluated method, on the first run that both have (paper, Table 4): by the
    final evaluation, or where the suite has none by that of pass@k."""
    kind = FINAL if done.suite.keys.final.benchmarks else PASS
    folders = {
        (e.model, e.method, e.base, e.seed): e.out for e in done.evaluations if e.kind == kind and e.is_done
    }
    units = dict.fromkeys((run.base, run.seed) for run in done.planned)
    reference = done.suite.keys.reference
    found: Exclusive = []
    for model, method in done.suite.pairs():
        both = [[(model, name, *unit) for name in (reference, method)] for unit in units]
        there = [pair for pair in both if folders.keys() >= set(pair)]
        if method != reference and there:
            a, b = (read_results(folders[key]) for key in there[0])
            found.append((model, method, compare(a, b)[0]))
    return found


# -- results.json --------------------------------------------------------------------------------------


def results_json(
    done: Done, results: Results, found: Sequence[Finding], exclusive: Exclusive, passes: Passes
) -> dict[str, Any]:
    """Every number of the page but the curves, which are in the run folders."""
    models = results.suite.models
    return {
        "title": done.suite.keys.title,
        "versions": {**versions(), "deepspeed": version_of("deepspeed")},
        "machine": machine(),
        "suite": public(done.suite.keys),
        "missing": done.missing,
        "failures_over_all_calls": done.journal.num_failures(),
        "run_again": {name: list(why) for name, why in done.changed.items()},
        "tuning": [
            {
                "model": model,
                "method": method,
                "tries": [{"settings": dict(t.settings), "validation": t.score} for t in choice.tries],
                "chosen": dict(choice.settings),
                "at_edge": choice.at_edge,
            }
            for (model, method), choice in done.choices.items()
        ],
        "runs": [{k: v for k, v in vars(record).items() if k != "run"} for record in results.records],
        "summary": summary(results),
        "differences": [asdict(c) for model in models for c in tables.contrasts(results, model)],
        "claims": [asdict(finding) for finding in found],
        "exclusive_solves": [
            {"model": model, "method": method, "rows": as_json(rows)} for model, method, rows in exclusive
        ],
        "configurations": {
            ".".join(filter(None, (*run.pair, run.base))): {
                k: v for k, v in flat(run.config).items() if k not in OF_ONE_RUN
            }
            for run in done.runs
        },
        "pass_at_k": [
            {"model": model, "method": method, "runs": len(solved.runs), "pass_at_k": solved.means()}
            for (model, method), solved in passes.items()
        ],
    }


def summary(results: Results) -> list[dict[str, Any]]:
    """Mean and interval of every cell."""
    return [
        {"model": model, "method": method, "measure": measure, **asdict(spread)}
        for model in results.suite.models
        for method in results.methods
        for measure in results.measures
        if (spread := results.spread(model, method, measure)) is not None
    ]


def covered(results: Results) -> set[str]:
    """What the intervals of the scores cover."""
    return {row["over"] for row in summary(results) if row["method"] != BASE and row["ci95"] is not None} or {
        "seeds"
    }


def machine() -> dict[str, Any]:
    """Where this was made, without names of hosts."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return {
        "platform": platform.platform(),
        "cpu": sorted({line.partition(":")[2].strip() for line in lines if line.startswith("model name")}),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


# -- the page ------------------------------------------------------------------------------------------


def _html(blocks: Iterable[Block]) -> Html:
    """Tables without rows are left out, and notes that no table or figure comes before."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Rows):
            parts += [table_html(block.rows, block.header, block.caption, align=block.align)] * bool(
                block.rows
            )
        elif isinstance(block, Html):
            parts += [block] * bool(block)
        elif parts and block:
            parts.append(note_html(block))
    return Html("".join(parts))


def _intro(done: Done, results: Results) -> Html:
    suite = done.suite
    seeds = ", ".join(map(str, suite.seeds))
    bases = sum(len(model.bases) or 1 for model in suite.models.values())
    counted = f"{len(suite.models)} models" + f" ({bases} bases)" * (bases > len(suite.models))
    lead = (
        f"{len(suite.methods)} methods on {counted}, seeds {seeds}: {len(results.records)} of "
        f"{len(done.planned)} reported runs and {sum(run.id in done.folders for run in done.tries)} of "
        f"{len(done.tries)} tries are there."
    )
    notes = [f"<p>{escape(note)}</p>" for note in suite.keys.notes]
    missing = Rows("What is missing", ["missing", "why"], list(done.missing.items()), "ll")
    return Html("\n".join([f'<p class="lead">{escape(lead)}</p>', *notes, _html([missing])]))


def _results(results: Results) -> Iterator[Block]:
    for model in results.suite.models:
        yield tables.scores_table(results, model)
        yield tables.costs_table(results, model)
    yield note_html(
        f"Percent of correct responses at the end of training, mean ± half a 95 % interval over "
        f"{' / '.join(sorted(covered(results)))}. "
        "The methods stand side by side at equal numbers of prompt attempts, with repetition: that is what a "
        "user has to collect, and all methods see the same prompts in the same order. Tokens and seconds of an "
        "attempt differ between them and stand in the table of costs."
    )
    for method in results.suite.methods.values():
        yield note_html(f"{method.title} *: {method.budget}") if method.budget else ""


def _differences(results: Results) -> Iterator[Block]:
    for model in results.suite.models:
        yield tables.contrasts_table(results, model)
    n = min(len(model.bases) or len(results.suite.seeds) for model in results.suite.models.values())
    yield (
        "Paired by base, seed and prompt, by one mixed model; `over` says what an interval and its p cover, and of "
        "nothing else do they speak. Where responses of an evaluation were not kept, that is seeds alone. Holm's "
        "correction is over the methods compared by one measure on one model. The sign flips are of whole bases, or of "
        f"seeds where there is one base: with {n} units they cannot give less than {2 / 2**n:.3g}, and a smaller p "
        "rests on normality, which fewer than six cannot show."
    )


def _findings(results: Results, found: Sequence[Finding]) -> Iterator[Block]:
    rows = [[f.claim, results.model_title(f.model), f.verdict, f.numbers, f.source] for f in found]
    header = ["claim", "model", "here", "numbers", "paper"]
    yield Rows("What the paper reports, asked of these runs", header, rows, "lllll")


def _paper(results: Results, exclusive: Exclusive) -> Iterator[Block]:
    for table, beside, printed in tables.paper_tables(results):
        yield beside
        yield details_html(f"All numbers of the paper's {table.title}", _html([printed]))
        yield table.note
    if exclusive:
        yield tables.exclusive_table(results, exclusive)
        yield TABLE4_NOTE if "table4" in results.suite.keys.paper else ""


def _tuning(done: Done, results: Results) -> Iterator[Block]:
    methods = done.suite.methods
    yield tables.sweep_table(results, done.choices)
    shared = [
        f"{method.title} takes the values chosen for {methods[method.tuned_as].title}."
        for method in methods.values()
        if method.tuned_as
    ]
    seeds = ", ".join(map(str, done.suite.keys.sweep.seeds))
    yield f"Every method had as many tries, on seed {seeds}, none of them reported. {' '.join(shared)}"


def _conditions(done: Done, numbers: dict[str, Any]) -> Iterator[Block]:
    facts = {**numbers["machine"], **numbers["versions"]}
    rows = [[name, ", ".join(value) if isinstance(value, list) else value] for name, value in facts.items()]
    yield Rows("Machine and versions", ["", ""], rows, "ll")
    changed = [[name, "; ".join(why)] for name, why in done.changed.items()]
    yield Rows("Made anew in the last call", ["run", "what differed"], changed, "ll")
    yield f"{numbers['failures_over_all_calls']} jobs failed over all calls; their outputs are in logs/."
