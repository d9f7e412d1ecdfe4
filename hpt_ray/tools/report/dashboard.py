"""The page of one run: which sections it has and what stands in each.

In: `RunData`. Out: title, introduction and sections, as HTML. A section without anything to show is left out;
its absence is said where a reader would look for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hpt_ray.config.load import known_keys
from hpt_ray.observe.metrics import METRICS, summarize_evaluations
from hpt_ray.observe.progress import short_time
from hpt_ray.observe.tables import shorten
from hpt_ray.tools.report.attempts import moves
from hpt_ray.tools.report.html import (
    Html,
    Pictures,
    Section,
    details_html,
    escape,
    facts_html,
    grid,
    note_html,
    swatch,
    table_html,
)
from hpt_ray.tools.report.load import Attempt, RunData
from hpt_ray.tools.report.methods import algorithm_of, shown
from hpt_ray.tools.report.pass_at_k import pass_at_k_html
from hpt_ray.tools.report.responses import (
    Asked,
    Line,
    answer_at,
    dumped_steps,
    followed_prompts,
    read_lines,
    sampled_responses,
)
from hpt_ray.tools.report.run_figures import draw_all, marks_of
from hpt_ray.tools.report.style import BRANCH_COLORS, rounded

MOST_CHARS = 1200  # of one answer or prompt; the beginning and the end of a longer one are shown
DASH = "–"


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
    lead = f"{algorithm_of(run)} on {config.get('model.path', '?')} · {how_far}"
    facts = [
        ("seed", shown(run.seed)),
        ("prompts per step", shown(config.get("prompts_per_step"))),
        ("rollouts per prompt", shown(config.get("group_size"))),
        ("prompts seen", f"{len({attempt.prompt_id for attempt in run.attempts}):,}"),
        ("tokens sampled", rounded(run.tokens_sampled)),
        ("tokens trained on", rounded(run.tokens_trained)),
        ("time", short_time(run.wall_s)),
        ("faults mended", f"{sum(_faults(run).values()):,.0f}"),
    ]
    return f'<p class="lead">{escape(lead)}</p>\n{facts_html(facts)}'


# -- sections: (run, pictures) → HTML, empty where there is nothing ----------------------------------


def figures(run: RunData, pictures: Pictures, section: str) -> str:
    drawn = draw_all(run, section)
    return grid(*(pictures.add(name, d.figure, d.alt, d.caption) for name, d in drawn))


def learning(run: RunData, pictures: Pictures) -> str:
    if not run.lines:
        return note_html("No step is done yet.")
    notes = []
    marks = marks_of(run)
    if marks.faults:
        notes.append("A triangle at the foot of a figure marks a step with a fault or a skipped update.")
    if marks.phases:
        notes.append("A dotted line is where the next phase begins.")
    if len(run.lines) >= 30:
        notes.append("Thin lines are the values of single steps, thick ones their rolling mean.")
    return note_html(" ".join(notes)) * bool(notes) + figures(run, pictures, "Learning")


def evaluations(run: RunData, pictures: Pictures) -> str:
    """First, best and last of each set; then every evaluation; then pass@k of the finished model."""
    ends = summarize_evaluations(run.lines)
    finished = pass_at_k_html(run.results, pictures)
    if not ends:
        return finished
    rows = [
        [name, *(f"{point['mean']:.3f} (step {point['step']})" for point in points.values())]
        for name, points in ends.items()
    ]
    header, caption = ["set", "first", "best", "last"], "Mean score; the best is chosen on the set itself"
    sets = run.evaluations()
    steps = sorted({int(step) for series in sets.values() for step in series.steps})
    known = {name: dict(zip(s.steps.tolist(), s.values.tolist(), strict=True)) for name, s in sets.items()}
    every = [
        [name, *(f"{v[step]:.3f}" if step in v else DASH for step in steps)] for name, v in known.items()
    ]
    all_of_them = table_html(every, ["set", *(f"step {step:,}" for step in steps)], "Mean score by step")
    return table_html(rows, header, caption) + details_html("Every evaluation", all_of_them) + finished


def prompts(run: RunData, pictures: Pictures) -> str:
    """The heat map, where prompts moved from first to last attempt, and the path of single prompts."""
    if not run.attempts:
        return note_html("No attempts were recorded (prompt_history.jsonl).") if run.lines else ""
    drawn = figures(run, pictures, "Prompts")
    if not drawn:
        return note_html("No rollouts were sampled in training, so there is no solve rate to show.")
    counts = moves(run.attempts)
    names = ["none", "some", "all"]
    rows = [[f"{name} solved at first", *row] for name, row in zip(names, counts.tolist(), strict=True)]
    table = table_html(
        rows,
        [f"{counts.sum():,} prompts", *(f"{name} at last" for name in names)],
        "Prompts by their first and last attempt, of those visited more than once",
    )
    paths = "".join(_path_html(run, kind, attempts) for kind, attempts in followed_prompts(run).items())
    return grid(drawn, Html(f"<div>{table}{note_html(READ_THE_MAP)}</div>")) + paths


READ_THE_MAP = (
    "Each row of the map is one prompt and each column one attempt. The left half shows how much of an attempt's "
    "rollouts were right; the right half what the attempt trained on, so a change of colour along a row is the "
    "gate changing its mind. White: no attempt yet."
)


def _path_html(run: RunData, kind: str, attempts: Sequence[Attempt]) -> str:
    """One prompt over its attempts, with an answer from each attempt whose rollouts were dumped."""
    steps, rows, prompt = set(dumped_steps(run)), [], ""
    for attempt in attempts:
        found = answer_at(read_lines(run, attempt.step), attempt.prompt_id) if attempt.step in steps else None
        answer = DASH
        if found:
            prompt = (
                prompt
                or f"{shorten(found[0]['prompt'], 300)} — reference: {shorten(found[0]['reference'], 80)}"
            )
            answer = f"{shorten(found[1]['text'], 160)} [{_words(found[1]['outcome'])}]"
        solved = f"{attempt.correct}/{attempt.rollouts - attempt.aborted}"
        rows.append([attempt.step, solved, branch_html(attempt.branch), _words(attempt.reason), answer])
    header = ["step", "solved", "trained on", "why", "an answer"]
    table = table_html(rows, header, "One prompt over its attempts", align="rrlll")
    return f"<h3>{escape(kind.capitalize())}: {escape(attempts[0].prompt_id)}</h3>\n<p>{escape(prompt)}</p>\n{table}"


def answers(run: RunData, pictures: Pictures) -> str:
    """Groups of a few steps: prompt, decision and telling answers."""
    by_step = sampled_responses(run)
    parts = []
    for number, (step, asked) in enumerate(by_step.items()):
        cards = "".join(_card(one) for one in asked if one.answers)
        if cards:
            parts.append(details_html(f"Step {step:,}", cards, is_open=number in (0, len(by_step) - 1)))
    return "".join(parts)


def _card(asked: Asked) -> str:
    line = asked.line
    weights = f"α = {line['rollout_weight']:g}, β = {line['demo_weight']:g}"
    given = "".join(_answer(answer) for answer in asked.answers)
    counts = f"{line['num_correct']} of {line['num_rollouts']} solved"
    if line["num_rollouts"] is None:  # files of an older version
        counts = f"{line['num_correct']} solved"
    return (
        f'<article class="card"><h3>{escape(line["prompt_id"])}</h3>\n<pre>{_long(line["prompt"])}</pre>\n'
        f"<p>Reference: <code>{_long(line['reference'])}</code>. {escape(counts)} → trained on "
        f'{branch_html(line["branch"])} <span class="soft">({escape(_words(line["reason"]))}; {weights})</span>'
        f'</p>\n<div class="answers">{given}</div></article>\n'
    )


def _answer(line: Line) -> str:
    good = line["outcome"] == "correct"
    facts = [f"score {line['score']:g}", f"{line['num_tokens']:,} tokens"]
    facts += [f"read as {shorten(line['extracted'], 60)}"] if line["extracted"] is not None else []
    facts += ["cut by the limit"] if line["finish"] == "length" else []
    facts += [shorten(line["detail"], 200)] if line["detail"] else []
    tag = f'<span class="tag {"good" if good else "bad"}">{escape(_words(line["outcome"]))}</span>'
    about = f'<span class="soft">{escape(" · ".join(facts))}</span>'
    return f"<div><p>{tag} {about}</p><pre>{_long(line['text'])}</pre></div>"


def branch_html(branch: str) -> Html:
    chip = swatch(BRANCH_COLORS.get(branch, "#ffffff"))
    return Html(f'<span class="whole">{chip}{escape(branch)}</span>')


def _long(text: Any) -> str:
    return escape(shorten(str(text), MOST_CHARS))


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def faults(run: RunData, pictures: Pictures) -> str:
    """What failed and was mended, by step."""
    rows = [
        [f"{line['step']:,}", _words(name.removeprefix("faults/")), f"{value:g}"]
        for line in run.lines
        for name, value in line.items()
        if (name.startswith("faults/") or name.endswith("/skipped_updates")) and value
    ]
    table = table_html(rows, ["step", "what", "count"], "Mended; see docs/faults.md", align="rlr")
    failures = [[_words(name), value] for name, value in run.summary.get("failures", {}).items()]
    more = table_html(failures, ["what", "count"], "Answers that were not graded, and lost rollouts, in all")
    return table * bool(rows) + more * bool(failures)


def configuration(run: RunData, pictures: Pictures) -> str:
    """What differs from the defaults, and everything."""
    defaults = {key: shown(known.default) for key, known in known_keys().items()}
    changed = [
        [key, shown(value), defaults.get(key, DASH)]
        for key, value in run.config.items()
        if shown(value) != defaults.get(key)
    ]
    everything = [[key, shown(value)] for key, value in run.config.items()]
    return table_html(
        changed, ["key", "value", "default"], "What differs from the defaults", align="lll"
    ) + details_html("All keys", table_html(everything, ["key", "value"], "Configuration", align="ll"))


def metrics(run: RunData, pictures: Pictures) -> str:
    """Every metric with first, last and extreme values, and what it means."""
    meanings = {metric.name: (metric.unit, metric.meaning) for metric in METRICS}
    rows = []
    for name in run.names:
        if name == "step":
            continue
        series = run.series(name)
        first, last, low, high = (
            rounded(v)
            for v in (series.values[0], series.values[-1], series.values.min(), series.values.max())
        )
        unit, meaning = meanings.get(name, ("", ""))
        rows.append([name, first, last, low, high, unit, meaning])
    header = ["metric", "first", "last", "lowest", "highest", "unit", "meaning"]
    table = table_html(rows, header, f"{len(rows)} metrics over {len(run.lines)} lines", align="lrrrrll")
    return details_html("Every metric", table) if rows else ""


def _faults(run: RunData) -> dict[str, float]:
    return {name: float(run.series(name).values.sum()) for name in run.names if name.startswith("faults/")}


def _figures_of(section: str) -> Callable[[RunData, Pictures], str]:
    return lambda run, pictures: figures(run, pictures, section)


SECTIONS: dict[str, Callable[[RunData, Pictures], str]] = {
    "Learning": learning,
    "Evaluations": evaluations,
    "Prompts": prompts,
    "Answers": answers,
    "Optimizer and policy": _figures_of("Optimizer and policy"),
    "Time and memory": _figures_of("Time and memory"),
    "Faults": faults,
    "Configuration": configuration,
    "Metrics": metrics,
}
