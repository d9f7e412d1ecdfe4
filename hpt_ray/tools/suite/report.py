"""One page and one file of numbers about a suite: report.html with its PNGs, and results.json.

In: a `Done`. What is missing is named at the top, not passed over. All numbers of the page are in
results.json, with the suite, the seeds, the configuration of every run, the versions and the machine.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from hpt_ray.evaluation.compare import Comparison, as_json, compare
from hpt_ray.evaluation.report import versions
from hpt_ray.evaluation.results import read_results
from hpt_ray.observe.run_folder import write_atomic
from hpt_ray.tools.report import Html, Pictures, Section, escape, page, table_html
from hpt_ray.tools.report.html import details_html
from hpt_ray.tools.suite import tables
from hpt_ray.tools.suite.collect import Results, collect
from hpt_ray.tools.suite.dynamics import Finding, findings
from hpt_ray.tools.suite.figures import figures_of, pass_figures
from hpt_ray.tools.suite.matrix import flat
from hpt_ray.tools.suite.paper_tables import TABLE4_NOTE
from hpt_ray.tools.suite.passes import PASS
from hpt_ray.tools.suite.runner import Done
from hpt_ray.tools.suite.solved import Passes, read_passes

Exclusive = list[tuple[str, str, list[Comparison]]]  # model, other method, comparisons


def write_report(done: Done) -> Path:
    """Write results.json, figures/ and report.html into the suite's folder; the path of the page."""
    out = done.suite.out
    out.mkdir(parents=True, exist_ok=True)
    results = collect(done)
    passes = read_passes(done.evaluations)
    found = findings(results, passes)
    exclusive = exclusive_solves(done)
    numbers = results_json(done, results, found, exclusive) | {"pass_at_k": _pass_json(passes)}
    write_atomic(out / "results.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    pictures = Pictures(out / "figures")
    sections = [
        Section("Results", _results(results)),
        Section("Differences", _differences(results)),
        Section("Claims of the paper", _findings(results, found)),
        Section("The paper's tables", _paper(results, exclusive)),
        *(
            Section(f"Course of training: {keys.title}", figures_of(results, model, pictures))
            for model, keys in done.suite.models.items()
        ),
        Section("pass@k", pass_figures(results, passes, pictures)),
        Section("Tuning", _tuning(done, results)),
        Section("Conditions", _conditions(done, numbers)),
    ]
    path = out / "report.html"
    write_atomic(path, page(done.suite.keys.title, [s for s in sections if s.html], _intro(done, results)))
    return path


def exclusive_solves(done: Done) -> Exclusive:
    """The reference against every other evaluated method, on the first seed that both have (paper, Table 4)."""
    folders = {(e.model, e.method, e.seed): e.out for e in done.evaluations if e.kind == PASS and e.is_done}
    reference = done.suite.keys.reference
    found: Exclusive = []
    for model, method in done.suite.pairs():
        seeds = [
            seed
            for seed in done.suite.seeds
            if {(model, m, seed) for m in (reference, method)} <= set(folders)
        ]
        if method != reference and seeds:
            a, b = (read_results(folders[model, m, seeds[0]]) for m in (reference, method))
            found.append((model, method, compare(a, b)[0]))
    return found


# -- results.json --------------------------------------------------------------------------------------


def results_json(
    done: Done, results: Results, found: Sequence[Finding], exclusive: Exclusive
) -> dict[str, Any]:
    """Every number of the page but the curves, which are in the run folders."""
    return {
        "title": done.suite.keys.title,
        "versions": {**versions(), "deepspeed": _version("deepspeed")},
        "machine": machine(),
        "suite": asdict(done.suite.keys),
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
        "runs": [
            {
                "id": score.spec.id,
                "model": score.spec.model,
                "method": score.spec.method,
                "seed": score.spec.seed,
                "scores": dict(score.values),
                "before_training": dict(score.before),
                "costs": score.costs,
                "failures": score.run.summary.get("failures", {}),
                "faults": score.run.summary.get("faults", {}),
            }
            for score in results.scores
        ],
        "summary": list(_summary(results)),
        "differences": [
            asdict(contrast)
            for model in results.suite.models
            for contrast in tables.contrasts(results, model)
        ],
        "claims": [asdict(finding) for finding in found],
        "exclusive_solves": [
            {"model": model, "method": method, "rows": as_json(rows)} for model, method, rows in exclusive
        ],
        "configurations": {f"{s.model}.{s.method}": _recorded(flat(s.config)) for s in done.runs},
    }


def _summary(results: Results) -> Iterator[dict[str, Any]]:
    for model in results.suite.models:
        for method in results.methods:
            for measure in results.measures:
                spread = results.spread(model, method, measure)
                if spread is not None:
                    yield {"model": model, "method": method, "measure": measure, **asdict(spread)}


def _recorded(config: dict[str, Any]) -> dict[str, Any]:
    """Without what is of one run or of one place."""
    return {k: v for k, v in config.items() if k not in ("run.dir", "run.name", "run.seed")}


def _pass_json(passes: Passes) -> list[dict[str, Any]]:
    return [
        {"model": model, "method": method, "seeds": solved.num_seeds, "pass_at_k": solved.means()}
        for (model, method), solved in passes.items()
    ]


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -- the page ------------------------------------------------------------------------------------------


def _intro(done: Done, results: Results) -> str:
    suite, missing = done.suite, done.missing
    seeds = ", ".join(map(str, suite.seeds))
    wanted = len(done.wanted or done.runs)
    lead = (
        f"{len(suite.methods)} methods on {len(suite.models)} models, seeds {seeds}: {len(results.scores)} of {wanted} "
        f"reported runs and {sum(run.id in done.folders for run in done.tries)} of {len(done.tries)} tries are there."
    )
    parts = [f'<p class="lead">{escape(lead)}</p>']
    parts += [f"<p>{escape(note)}</p>" for note in suite.keys.notes]
    if missing:
        rows = [[name, why] for name, why in missing.items()]
        parts.append(table_html(rows, ["missing", "why"], "What is missing", align="ll"))
    return "\n".join(parts)


def _table(rows: tables.Rows, *, align: str = "") -> Html:
    return table_html(rows.rows, rows.header, rows.caption, align=align) if rows.rows else Html("")


def _results(results: Results) -> str:
    parts: list[str] = []
    for model in results.suite.models:
        parts += [_table(tables.scores_table(results, model)), _table(tables.costs_table(results, model))]
    note = (
        "Percent of right answers at the end of training, mean ± half a 95 % interval over seeds (Student's t). "
        "The methods stand side by side at equal numbers of prompts visited, with repetition: that is what a "
        "user has to collect, and all methods see the same prompts in the same order. Tokens and seconds of a "
        "attempt differ between them and stand in the table of costs."
    )
    starred = [f"{m.title} *: {m.budget}" for m in results.suite.methods.values() if m.budget]
    return "".join(parts) + "".join(f'<p class="note">{escape(line)}</p>' for line in (note, *starred))


def _differences(results: Results) -> str:
    parts = [
        _table(tables.contrasts_table(results, model), align="llrrrrr") for model in results.suite.models
    ]
    n = len(results.suite.seeds)
    note = (
        f"Paired by seed. With {n} seeds the sign-flip test cannot give less than {2 / 2**n:.3g}; Holm's correction "
        "is over the methods compared by one measure on one model. A small p speaks of these prompts and this "
        "base model alone."
    )
    return "".join(parts) + f'<p class="note">{escape(note)}</p>' if any(parts) else ""


def _findings(results: Results, found: Sequence[Finding]) -> str:
    rows = [[f.claim, results.suite.models[f.model].title, f.verdict, f.numbers, f.source] for f in found]
    header = ["claim", "model", "here", "numbers", "paper"]
    return (
        table_html(rows, header, "What the paper reports, asked of these runs", align="lllll") if rows else ""
    )


def _paper(results: Results, exclusive: Exclusive) -> str:
    parts: list[str] = []
    for table, rows, printed in tables.paper_tables(results):
        parts += [_table(rows), details_html(f"All numbers of the paper's {table.title}", _table(printed))]
        parts += [f'<p class="note">{escape(table.note)}</p>'] if table.note else []
    if exclusive:
        parts.append(_table(tables.exclusive_table(results, exclusive), align="lllrrr"))
        parts += [
            _table(tables.paper_exclusive_table(), align="llrrr"),
            f'<p class="note">{escape(TABLE4_NOTE)}</p>',
        ]
    return "".join(parts)


def _tuning(done: Done, results: Results) -> str:
    if not done.choices:
        return ""
    shared = [
        f"{m.title} takes the values chosen for {done.suite.methods[m.tuned_as].title}."
        for m in done.suite.methods.values()
        if m.tuned_as
    ]
    seeds = ", ".join(map(str, done.suite.keys.sweep.seeds))
    note = f"Every method had as many tries, on seed {seeds}, none of them reported. {' '.join(shared)}"
    rows = tables.sweep_table(results, done.choices)
    return _table(rows, align="lllrl") + f'<p class="note">{escape(note)}</p>'


def _conditions(done: Done, numbers: dict[str, Any]) -> str:
    facts = {**numbers["machine"], **numbers["versions"]}
    rows = [[name, ", ".join(value) if isinstance(value, list) else value] for name, value in facts.items()]
    changed = [[name, "; ".join(why)] for name, why in done.changed.items()]
    note = f"{numbers['failures_over_all_calls']} jobs failed over all calls; their outputs are in logs/."
    again = (
        table_html(changed, ["run", "what differed"], "Made anew in the last call", align="ll")
        if changed
        else ""
    )
    return (
        table_html(rows, ["", ""], "Machine and versions", align="ll")
        + again
        + f'<p class="note">{escape(note)}</p>'
    )
