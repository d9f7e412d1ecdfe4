"""The page of one run or several as one file without a server: scripts, styles and what the page would ask for.

In: `RunData` of each. Out: HTML. A response is hostile text: the data is JSON in a block that no browser runs, without
any `<`, and the page's policy allows its own two scripts by their hashes and no connection at all. The size has limits,
which several runs share: points of curves, cells of gate maps, rollouts of some steps; the page says what it lacks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from hpt_ray.errors import UserError
from hpt_ray.observe.rollout_dump import dump_of
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report.comparison import comparison, title_of
from hpt_ray.tools.report.load import RunData
from hpt_ray.tools.report.methods import group_runs, shown
from hpt_ray.tools.report.summary import summary
from hpt_ray.tools.watch import rollouts
from hpt_ray.tools.watch.answers import PAGE, metric_names
from hpt_ray.tools.watch.gate import ORDERS, gate_map
from hpt_ray.tools.watch.reader import Run, curves
from hpt_ray.tools.watch.timeline import timeline

MODULES = ("saved", "dom", "state", "summary", "config", "curves", "gate", "rollouts", "time", "main")
MOST_POINTS, ALL_POINTS = 2000, 20_000  # of a curve, and of the curves of one metric of all runs
MOST_CELLS = 200_000  # of all orders of the gate map together
MOST_CHARS = {"step": 6_000_000, "eval": 2_000_000}  # of the responses to be kept
MOST_STEPS = 40  # whose rollouts are kept
NUM_TIMELINES = 3


def saved_page(runs: Sequence[RunData]) -> str:
    """The whole file; of several runs, those without a step are only named.

    Raises `UserError` where a file of a run cannot be read.
    """
    scripts = [(PAGE / "vendor" / "uPlot.iife.min.js").read_text("utf-8"), bundle()]
    styles = [(PAGE / name).read_text("utf-8") for name in ("vendor/uPlot.min.css", "style.css")]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
    policy += "base-uri 'none'; form-action 'none'"
    data = json.dumps(saved_data(runs), separators=(",", ":")).replace("<", "\\u003c")
    head = [f'<meta http-equiv="Content-Security-Policy" content="{policy}">']
    head += [f"<style>{style}</style>" for style in styles]
    body = [f'<script type="application/json" id="saved">{data}</script>']
    body += [f"<script>{script}</script>" for script in scripts]
    page = re.sub(
        r'<(link rel="stylesheet"|script src)[^\n]*\n', "", (PAGE / "index.html").read_text("utf-8")
    )
    page = page.replace("</head>", "\n".join([*head, "</head>"]))
    return page.replace("</body>", "\n".join([*body, "</body>"]))


def bundle() -> str:
    """The page's modules as one script: each a function that returns what it exports."""
    parts = []
    for name in MODULES:
        text = (PAGE / f"{name}.js").read_text("utf-8")
        text = re.sub(
            r'^import \* as (\w+) from "\./(\w+)\.js";', r"const \1 = modules.\2;", text, flags=re.M
        )
        text = re.sub(r'^import (\{.*\}) from "\./(\w+)\.js";', r"const \1 = modules.\2;", text, flags=re.M)
        exported = re.findall(r"^export (?:async )?(?:function|const) ([\w$]+)", text, flags=re.M)
        text = re.sub(r"^export ", "", text, flags=re.M)
        parts.append(f"modules.{name} = (() => {{\n{text}\nreturn {{ {', '.join(exported)} }};\n}})();")
    return "\n".join(['"use strict";', "const modules = {};", *parts])


def saved_data(runs: Sequence[RunData]) -> dict[str, Any]:
    """What saved.js answers from: of all runs together by question, then `of` each run by question."""
    shown_runs = [run for run in runs if run.num_steps or len(runs) == 1]
    names = [run.name for run in shown_runs]
    by_id = {run.name if names.count(run.name) == 1 else str(run.root): run for run in shown_runs}
    ids = {run.root: name for name, run in by_id.items()}
    num = len(by_id)
    width = -(-(max(run.num_steps for run in shown_runs) + 1) // min(MOST_POINTS, -(-ALL_POINTS // num)))
    return {
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "title": title_of(shown_runs) if num > 1 else names[0],
        "runs": [{"id": name, **Run(run.root).facts()} for name, run in by_id.items()],
        "metrics": metric_names(),
        "methods": [
            [method.label, [ids[run.root] for run in method.runs]] for method in group_runs(shown_runs)
        ],
        "comparison": comparison(runs) if len(runs) > 1 else None,
        "of": {name: saved_run(run, width, num) for name, run in by_id.items()},
    }


def saved_run(data: RunData, width: int, num: int) -> dict[str, Any]:
    """One of `num` runs; a point of its curves is `width` steps."""
    run = Run(data.root)
    kept, notes = {}, []
    for kind, what in {"step": "training", "eval": "evaluations"}.items():
        kept[kind], steps, num_steps = kept_rollouts(data, run.folder, kind, MOST_CHARS[kind] // num)
        listed = ", ".join(f"{step:,}{part}" for step, part in sorted(steps.items()))
        if len(steps) < num_steps or any(steps.values()):
            notes.append(
                f"of the rollouts of {what}, those of {len(steps):,} of {num_steps:,} steps ({listed})"
            )
    if width > 1:
        notes.append(f"of the curves, the mean{', lowest and highest' * (num == 1)} of {width:,} steps each")
    lines = {
        step: line for step in _telling_steps(data)[:NUM_TIMELINES]
        if (line := timeline(run.folder.trace, step))["tracks"]
    }  # fmt: skip
    notes.append(
        f"of the timelines, those of steps {', '.join(map(str, sorted(lines)))}" if lines else "no timeline"
    )
    count = data.num_steps // width + 1
    return {
        "note": "; ".join(notes),
        "summary": summary(data),
        "config": {key: shown(value) for key, value in data.config.items()},  # without keys in addresses
        "curves": {"first": 0, "width": width}
        | curves(run, ["*"], first=0, width=width, count=count, bands=num == 1),
        "gate": dict(_gate_maps(run.history.table(), MOST_CELLS // num)),
        "choices": {kind: rollouts.choices(run.folder, kind) for kind in kept},
        "groups": kept,
        "timelines": lines,
    }


def _gate_maps(history: pa.Table, most_cells: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """By `ORDER step` or `ORDER attempt`, as many as there is room for; the first always."""
    num_cells = 0
    for order in ORDERS:
        for by in ("step", "attempt"):
            if num_cells <= most_cells:
                found = gate_map(history, order=order, by_attempt=by == "attempt")
                num_cells += len(found["cells"])
                yield f"{order} {by}", found


def kept_rollouts(
    data: RunData, folder: RunFolder, kind: str, most_chars: int
) -> tuple[list[dict[str, Any]], dict[int, str], int]:
    """Groups, as `rollouts.group` has them; their steps, with what part of a step it is; how many were dumped.

    The last step and the first come first, then the one with the lowest reward, then others from all over the run. One
    step gets at most a third of `most_chars`.
    """
    dumped = rollouts.dumped_steps(folder, kind)
    kept: list[dict[str, Any]] = []
    steps: dict[int, str] = {}
    left = most_chars
    for step in [step for step in _telling_steps(data, dumped) if step in set(dumped)][:MOST_STEPS]:
        if left <= 0:
            break
        try:
            found, size = rollouts.groups(folder, step, kind, min(left, most_chars // 3))
        except (OSError, pa.ArrowException) as error:
            path = dump_of(folder.rollouts, step, kind)
            raise UserError(
                f"{path}: cannot be read as parquet ({error}). Remove it to go without it."
            ) from error
        left -= sum(len(one["text"] or "") for group in found for one in group["responses"])
        steps[step] = "" if len(found) == size else f": {len(found):,} of {size:,} prompts"
        kept += found
    return sorted(kept, key=lambda group: -group["step"]), steps, len(dumped)


def _telling_steps(data: RunData, among: Sequence[int] | None = None) -> list[int]:
    """The last step, the first, that with the lowest reward, that which took longest, then a few from all over."""
    steps = sorted(among if among is not None else {int(line["step"]) for line in data.lines if line["step"]})
    if not steps:
        return []
    reward, seconds = data.series("reward/mean"), data.series("time/step_s")
    worst = [int(reward.steps[reward.values.argmin()])] if len(reward) else []
    slowest = [int(seconds.steps[seconds.values.argmax()])] if len(seconds) else []
    ends = [steps[-1], steps[0]]
    special = [*ends, *worst, *slowest] if among is not None else [*slowest, *ends]
    spread = [steps[i * (len(steps) - 1) // MOST_STEPS] for i in range(MOST_STEPS)]
    return list(dict.fromkeys([*special, *spread]))
