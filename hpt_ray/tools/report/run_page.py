"""The page of one run: which sections it has and what stands in each.

In: `RunData`. Out: title, sections and introduction, as HTML. A section without anything to show is left out;
its absence is said where a reader would look for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hpt_ray.config.load import known_keys
from hpt_ray.evaluation.statistics import mean_over_prompts, percent
from hpt_ray.observe.metrics import METRICS, summarize_evaluations
from hpt_ray.observe.step_line import short_time
from hpt_ray.observe.tables import shorten
from hpt_ray.tools.report.attempts import moves
from hpt_ray.tools.report.curves import pass_curve
from hpt_ray.tools.report.data_section import data_section, warnings_of
from hpt_ray.tools.report.figures import Curve
from hpt_ray.tools.report.html import (
    Html,
    Pictures,
    Section,
    details_html,
    grid,
    note_html,
    part,
    table_html,
    words,
)
from hpt_ray.tools.report.load import Attempt, RunData
from hpt_ray.tools.report.methods import DASH, algorithm_of, shown
from hpt_ray.tools.report.responses import (
    Asked,
    Line,
    dumped_steps,
    followed_prompts,
    read_lines,
    response_at,
    sampled_responses,
)
from hpt_ray.tools.report.run_figures import draw_all, draw_pass_at_k, faults_of, marks_of
from hpt_ray.tools.report.style import BLUE, BRANCH_COLORS, rounded

READ_THE_MAP = (
    "Each row of the map is one prompt and each column one attempt. The left half shows how much of an attempt's "
    "rollouts were correct; the right half what the attempt trained on, so a change of colour along a row is the "
    "gate changing its mind. White: no attempt yet."
)


def run_page(run: RunData, pictures: Pictures) -> tuple[str, list[Section], str]:
    """Title, sections and introduction (HTML) of the page about one run."""
    sections = [Section(title, html) for title, make in SECTIONS.items() if (html := make(run, pictures))]
    return run.name, sections, introduction(run)


def introduction(run: RunData) -> str:
    """What was trained how far, in a sentence and a few facts."""
    config, total = run.config, run.config.get("run.steps", "?")
    how_far = f"{run.num_steps:,} of {total:,} steps" if isinstance(total, int) else f"{run.num_steps} steps"
    if run.state != "done":
        how_far += "; the run goes on, or was stopped"
    mended = sum(s.values.sum() for name, s in faults_of(run).items() if name.startswith("faults/"))
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
    return part("lead", lead) + part("facts", facts.items()) + warnings_of(run)


# -- sections: (run, pictures) → HTML, empty where there is nothing ----------------------------------


def figures(run: RunData, pictures: Pictures, names: Sequence[str]) -> str:
    return grid(*(pictures.add(name, *drawn) for name, drawn in draw_all(run, names)))


def learning(run: RunData, pictures: Pictures) -> str:
    if not run.lines:
        return note_html("No step is done yet.")
    marks = marks_of(run)
    notes = {
        "A triangle at the foot of a figure marks a step with a fault or a skipped update.": marks.faults,
        "A dotted line is where the next phase begins.": marks.phases,
        "Thin lines are the values of single steps, thick ones their rolling mean.": len(run.lines) >= 30,
    }
    text = " ".join(note for note, is_true in notes.items() if is_true)
    names = "reward evaluations offline_ratio outcomes entropy length truncated demo_loss reasons"
    return (note_html(text) if text else "") + figures(run, pictures, names.split())


def evaluations(run: RunData, pictures: Pictures) -> str:
    """First, best and last of each set; then every evaluation; then pass@k of the finished model."""
    ends = summarize_evaluations(run.lines)
    finished = pass_at_k(run, pictures)
    if not ends:
        return finished
    rows = [
        [name, *(f"{point['mean']:.3f} (step {point['step']})" for point in points.values())]
        for name, points in ends.items()
    ]
    table = table_html(
        rows, ["set", "first", "best", "last"], "Mean score; the best is chosen on the set itself"
    )
    sets = run.evaluations()
    steps = np.unique(np.concatenate([series.steps for series in sets.values()]))
    every = [
        [name, *(DASH if np.isnan(value) else f"{value:.3f}" for value in series.at(steps, np.nan))]
        for name, series in sets.items()
    ]
    all_of_them = table_html(every, ["set", *(f"step {step:,}" for step in steps)], "Mean score by step")
    return table + details_html("Every evaluation", all_of_them) + finished


def pass_at_k(run: RunData, pictures: Pictures) -> str:
    """Figure and table of the evaluations of the finished model; empty without any."""
    drawn, rows = [], []
    for benchmark, results in run.results.items():
        ks, values, half = pass_curve(results)
        k, n = int(ks[-1]), min(row.n for row in results)
        mean = mean_over_prompts(np.array([row.correct / row.n for row in results]))
        at_k = f"{percent(values[-1], half[-1])} @{k}" if k > 1 else DASH
        rows.append([benchmark, f"{len(results):,}", n, percent(mean.value, mean.half_width), at_k])
        if k > 1:
            name = "pass_at_k_" + "".join(c if c.isalnum() else "_" for c in benchmark)
            curve = Curve("", BLUE, ks, values, values - half, values + half)
            drawn.append(pictures.add(name, *draw_pass_at_k(benchmark, [curve])))
    header = ["benchmark", "prompts", "samples", "mean", "pass@k"]
    caption = "The finished model, in percent ± half a 95 % interval over prompts"
    return table_html(rows, header, caption) + grid(*drawn) if rows else ""


def prompts(run: RunData, pictures: Pictures) -> str:
    """The heat map, where prompts moved from first to last attempt, and the path of single prompts."""
    if not run.attempts:
        return note_html("No attempts were recorded (prompt_history.jsonl).") if run.lines else ""
    drawn = figures(run, pictures, ["prompts"])
    if not drawn:
        return note_html("No rollouts were sampled in training, so there is no solve rate to show.")
    counts, names = moves(run.attempts), ("none", "some", "all")
    rows = [[f"{name} solved at first", *row] for name, row in zip(names, counts.tolist(), strict=True)]
    header = [f"{counts.sum():,} prompts", *(f"{name} at last" for name in names)]
    caption = "Prompts by their first and last attempt, of those with more than one"
    box = part("box", Html(table_html(rows, header, caption) + note_html(READ_THE_MAP)))
    return grid(drawn, box) + "".join(_path(run, kind, path) for kind, path in followed_prompts(run).items())


def _path(run: RunData, kind: str, attempts: Sequence[Attempt]) -> str:
    """One prompt over its attempts, with a response from each attempt whose rollouts were dumped."""
    steps, rows, prompt = set(dumped_steps(run)), [], ""
    for attempt in attempts:
        response = DASH
        if attempt.step in steps and (line := response_at(read_lines(run, attempt.step), attempt.prompt_id)):
            prompt = prompt or f"{shorten(line['prompt'], 300)} — reference: {shorten(line['reference'], 80)}"
            response = f"{shorten(line['text'], 160)} [{words(line['outcome'])}]"
        solved = f"{attempt.correct}/{attempt.rollouts - attempt.aborted}"
        rows.append([attempt.step, solved, branch(attempt.branch), words(attempt.reason), response])
    header = ["step", "solved", "trained on", "why", "a response"]
    table = table_html(rows, header, "One prompt over its attempts", align="rrlll")
    return part("path", kind, attempts[0].prompt_id, prompt, table)


def responses(run: RunData, pictures: Pictures) -> str:
    """Groups of a few steps: prompt, decision and telling responses."""
    by_step = sampled_responses(run)
    parts = []
    for number, (step, asked) in enumerate(by_step.items()):
        cards = "".join(_card(one) for one in asked if one.responses)
        if cards:
            parts.append(details_html(f"Step {step:,}", cards, is_open=number in (0, len(by_step) - 1)))
    return "".join(parts)


def _card(asked: Asked) -> str:
    line = asked.line
    of_all = (
        "" if line["num_rollouts"] is None else f" of {line['num_rollouts']}"
    )  # files of an older version
    counts = f"{line['num_correct']}{of_all} solved"
    return part("card", line, counts, branch(line["branch"]), [(r, _facts(r)) for r in asked.responses])


def _facts(line: Line) -> list[str]:
    """What is known about a response beside its outcome."""
    facts = [f"score {line['score']:g}", f"{line['num_tokens']:,} tokens"]
    facts += [f"read as {shorten(line['extracted'], 60)}"] if line["extracted"] is not None else []
    facts += ["truncated"] if line["finish"] == "length" else []
    return facts + ([shorten(line["detail"], 200)] if line["detail"] else [])


def branch(name: str) -> Html:
    return part("tinted", name, BRANCH_COLORS.get(name, "#ffffff"), whole=True)


def faults(run: RunData, pictures: Pictures) -> str:
    """What failed and was mended, by step."""
    found = faults_of(run)
    rows = [
        [f"{line['step']:,}", words(name.removeprefix("faults/")), f"{line[name]:g}"]
        for line in run.lines
        for name in line
        if name in found and line[name]
    ]
    table = table_html(rows, ["step", "what", "count"], "Mended; see docs/faults.md", align="rlr")
    failures = [[words(name), value] for name, value in run.summary.get("failures", {}).items()]
    more = table_html(
        failures, ["what", "count"], "Responses that were not graded, and lost rollouts, in all"
    )
    return table * bool(rows) + more * bool(failures)


def configuration(run: RunData, pictures: Pictures) -> str:
    """What differs from the defaults, and everything."""
    defaults = {key: shown(known.default) for key, known in known_keys().items()}
    everything = [[key, shown(value)] for key, value in run.config.items()]
    changed = [[k, v, defaults.get(k, DASH)] for k, v in everything if v != defaults.get(k)]
    header, caption = ["key", "value", "default"], "What differs from the defaults"
    all_keys = table_html(everything, ["key", "value"], "Configuration", align="ll")
    return table_html(changed, header, caption, align="lll") + details_html("All keys", all_keys)


def metrics(run: RunData, pictures: Pictures) -> str:
    """Every metric with first, last and extreme values, and what it means."""
    meanings = {metric.name: (metric.unit, metric.meaning) for metric in METRICS}
    rows = []
    for name in run.names:
        values = run.series(name).values
        ends = [rounded(value) for value in (values[0], values[-1], values.min(), values.max())]
        if name != "step":
            rows.append([name, *ends, *meanings.get(name, ("", ""))])
    header = ["metric", "first", "last", "lowest", "highest", "unit", "meaning"]
    table = table_html(rows, header, f"{len(rows)} metrics over {len(run.lines)} lines", align="lrrrrll")
    return details_html("Every metric", table) if rows else ""


OPTIMIZER = ["grad_norm", "lr", "loss", "logprob_gap", "kl", "clipped", "critic", "explained_variance"]
TIME = ["phases", "busy", "throughput", "memory"]
SECTIONS: dict[str, Callable[[RunData, Pictures], str]] = {
    "Learning": learning,
    "Evaluations": evaluations,
    "Prompts": prompts,
    "Responses": responses,
    "Optimizer and policy": partial(figures, names=[*OPTIMIZER, "off_policy_steps"]),
    "Time and memory": partial(figures, names=TIME),
    "Faults": faults,
    "Data": data_section,
    "Configuration": configuration,
    "Metrics": metrics,
}
