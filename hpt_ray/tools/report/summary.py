"""What a run came to, beside its curves and rollouts: result, warnings, data, prompts, faults, settings, metrics.

In: `RunData`. Out: the blocks of the page's first view, plain texts for JSON. A block without anything to show is left
out; its absence is said where a reader would look for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpt_ray.config.load import known_keys
from hpt_ray.evaluation.statistics import mean_over_prompts, percent
from hpt_ray.observe.data_card import QUANTILES, SET_COLUMNS, evaluation_rows, facts_of, length_rows, texts_of
from hpt_ray.observe.metrics import METRICS, summarize_evaluations
from hpt_ray.observe.step_line import short_time
from hpt_ray.tools.report.attempts import by_prompt, moves
from hpt_ray.tools.report.curves import pass_curve
from hpt_ray.tools.report.load import Attempt, RunData
from hpt_ray.tools.report.methods import DASH, algorithm_of, shown
from hpt_ray.tools.report.style import rounded

# Of it `title`, `lead`, `warnings`, `facts`, `notes`, `tables`, `pictures`, `texts` and `folded`.
Block = dict[str, Any]
MOST_ATTEMPTS = 8  # of one prompt that is followed


def summary(run: RunData) -> list[Block]:
    """The blocks, in their order."""
    found = [{"title": title, **make(run)} for title, make in BLOCKS.items()]
    return [block for block in found if len(block) > 1]


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[dict[str, Any]]:
    """A table in a list of its own; no table without rows. A cell `{"best": text}` is bold."""
    cells = [[cell if isinstance(cell, dict) else str(cell) for cell in row] for row in rows]
    return [{"caption": caption, "header": list(header), "rows": cells}] if rows else []


def only(**parts: Any) -> Block:
    """The parts that hold something."""
    return {name: part for name, part in parts.items() if part}


def overview(run: RunData) -> Block:
    config, total = run.config, run.config.get("run.steps", "?")
    how_far = f"{run.num_steps:,} of {total:,} steps" if isinstance(total, int) else f"{run.num_steps} steps"
    if run.state != "done":
        how_far += "; the run goes on, or was stopped"
    mended = sum(line.get(name) or 0 for line in run.lines for name in line if name.startswith("faults/"))
    facts = {
        "seed": shown(run.seed),
        "prompts per step": shown(config.get("prompts_per_step")),
        "rollouts per prompt": shown(config.get("group_size")),
        "prompts seen": f"{len({attempt.prompt_id for attempt in run.attempts}):,}",
        "tokens sampled": rounded(run.tokens_sampled),
        "tokens trained on": rounded(run.tokens_trained),
        "time": short_time(run.wall_s),
        "faults mended": f"{mended:,.0f}",
    }
    lead = f"{algorithm_of(run)} on {config.get('model.path', '?')} · {how_far}"
    notes = [] if run.lines else ["No step is done yet."]
    return only(lead=lead, warnings=run.data_card.warnings, facts=list(facts.items()), notes=notes)


def evaluations(run: RunData) -> Block:
    """First, best and last of each set; every evaluation; then pass@k of the finished model."""
    ends = summarize_evaluations(run.lines)
    rows = [
        [name, *(f"{point['mean']:.3f} (step {point['step']})" for point in points.values())]
        for name, points in ends.items()
    ]
    caption = "Mean score. Step 0 is the untrained model; the best is chosen on the set itself"
    found = table(caption, ["set", "first", "best", "last"], rows)
    sets = run.evaluations()
    steps = (
        np.unique(np.concatenate([series.steps for series in sets.values()])) if sets else np.zeros(0, int)
    )
    every = [
        [name, *(DASH if np.isnan(value) else f"{value:.3f}" for value in series.at(steps, np.nan))]
        for name, series in sets.items()
    ]
    found += table("Mean score by step", ["set", *(f"step {step:,}" for step in steps)], every)
    finished = []
    for benchmark, results in run.results.items():
        ks, values, half = pass_curve(results)
        mean = mean_over_prompts(np.array([row.correct / row.n for row in results]))
        at = " · ".join(f"{percent(v, h)} @{k}" for k, v, h in zip(ks, values, half, strict=True) if k > 1)
        whole = percent(mean.value, mean.half_width)
        finished.append([benchmark, f"{len(results):,}", min(row.n for row in results), whole, at or DASH])
    caption = "The finished model, in percent ± half a 95 % interval over prompts"
    header = ["benchmark", "prompts", "samples", "mean", "pass@k"]
    return only(tables=found + table(caption, header, finished))


def prompts(run: RunData) -> Block:
    """Where prompts moved from first to last attempt, and the path of single prompts."""
    if not run.attempts:
        return only(notes=["No attempts were recorded (prompt_history.jsonl)."] if run.lines else [])
    if not any(attempt.rollouts > attempt.aborted for attempt in run.attempts):
        return {"notes": ["No rollouts were sampled in training, so there is no solve rate to show."]}
    counts, names = moves(run.attempts), ("none", "some", "all")
    rows = [[f"{name} solved at first", *row] for name, row in zip(names, counts.tolist(), strict=True)]
    header = [f"{counts.sum():,} prompts", *(f"{name} at last" for name in names)]
    found = table("Prompts by their first and last attempt, of those with more than one", header, rows)
    for kind, path in followed_prompts(run).items():
        rows = [
            [a.step, f"{a.correct}/{a.rollouts - a.aborted}", a.branch, a.reason.replace("_", " ")]
            for a in path
        ]
        found += table(f"{kind}: {path[0].prompt_id}", ["step", "solved", "trained on", "why"], rows)
    return {"tables": found}


def followed_prompts(run: RunData) -> dict[str, list[Attempt]]:
    """The attempts of up to three prompts: one learned, one never solved, one lost again.

    Each is the one that changed most in its kind; of equals, the one with the most attempts.
    """
    graded = by_prompt(attempt for attempt in run.attempts if attempt.rollouts > attempt.aborted)
    kinds: dict[str, list[list[Attempt]]] = {"Learned": [], "Never solved": [], "Lost again": []}
    for path in graded.values():
        first, last, best = path[0].solve_rate, path[-1].solve_rate, max(a.solve_rate for a in path)
        if len(path) > 1:
            kinds["Learned"] += [path] if first == 0 and last >= 0.5 else []
            kinds["Never solved"] += [path] if best == 0 else []
            kinds["Lost again"] += [path] if best >= 0.5 and last == 0 else []
    return {name: _spread(max(kind, key=_change), MOST_ATTEMPTS) for name, kind in kinds.items() if kind}


def _change(attempts: Sequence[Attempt]) -> tuple[float, int]:
    rates = [attempt.solve_rate for attempt in attempts]
    return max(rates) - min(rates), len(attempts)


def _spread(items: Sequence[Attempt], most: int) -> list[Attempt]:
    """At most so many, the first and the last among them."""
    count = min(most, len(items))
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def faults(run: RunData) -> Block:
    """What failed and was mended, by step, and what failed in all."""
    rows = [
        [f"{line['step']:,}", name.removeprefix("faults/").replace("_", " "), f"{line[name]:g}"]
        for line in run.lines
        for name in line
        if (name.startswith("faults/") or name.endswith("/skipped_updates")) and line[name]
    ]
    failures = [[name.replace("_", " "), value] for name, value in run.summary.get("failures", {}).items()]
    found = table("Mended; see docs/faults.md", ["step", "what", "count"], rows)
    caption = "Responses that were not graded, and lost rollouts, in all"
    return only(tables=found + table(caption, ["what", "count"], failures))


def data(run: RunData) -> Block:
    """The data card: files, rows, lengths, an example and a refused demonstration of each phase; evaluation sets."""
    tables, texts = [], []
    for one in run.data_card.training:
        tables += table(one.title, ["", "what was read"], facts_of(one))
        tables += table("Lengths against their limits", ["tokens", *QUANTILES.values()], length_rows(one))
        texts += [[f"{what.capitalize()}: {name}", pairs] for what, name, pairs in texts_of(one)]
    tables += table("Evaluation sets", SET_COLUMNS, evaluation_rows(run.data_card.evaluation))
    return only(tables=tables, texts=texts)


def settings(run: RunData) -> Block:
    defaults = {key: shown(known.default) for key, known in known_keys().items()}
    everything = [[key, shown(value)] for key, value in run.config.items()]
    changed = [[k, v, defaults.get(k, DASH)] for k, v in everything if v != defaults.get(k)]
    return only(tables=table("What differs from the defaults", ["key", "value", "default"], changed))


def metrics(run: RunData) -> Block:
    """Every metric with first, last and extreme values, and what it means."""
    meanings = {metric.name: (metric.unit, metric.meaning) for metric in METRICS}
    rows = []
    for name in run.names:
        values = run.series(name).values
        ends = [rounded(value) for value in (values[0], values[-1], values.min(), values.max())]
        if name != "step":
            rows.append([name, *ends, *meanings.get(name, ("", ""))])
    header = ["metric", "first", "last", "lowest", "highest", "unit", "meaning"]
    found = table(f"{len(rows)} metrics over {len(run.lines)} lines", header, rows)
    return only(tables=found, folded=bool(found))


BLOCKS: dict[str, Callable[[RunData], Block]] = {
    "Overview": overview,
    "Evaluations": evaluations,
    "Prompts": prompts,
    "Faults": faults,
    "Data": data,
    "Settings": settings,
    "Every metric": metrics,
}
