"""What the page may ask for, each question with the function that answers it: plain lists and dicts for JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpt_ray.observe.metrics import METRICS
from hpt_ray.tools.watch import rollouts
from hpt_ray.tools.watch.gate import gate_map
from hpt_ray.tools.watch.reader import Runs, curves
from hpt_ray.tools.watch.timeline import timeline

PAGE = Path(__file__).parent / "page"
Answer = Callable[[Runs, Mapping[str, str]], Any]


def _runs(runs: Runs, asked: Mapping[str, str]) -> Any:
    return [{"id": name, **run.facts()} for name, run in runs.all().items()]


def metric_names() -> list[dict[str, str]]:
    return [{"name": metric.name, "unit": metric.unit, "meaning": metric.meaning} for metric in METRICS]


def _curves(runs: Runs, asked: Mapping[str, str]) -> Any:
    """Of each of `runs`, a JSON list of `[id, first, count]`."""
    grid = {name: _count(asked[name]) for name in ("width", "smooth")}
    metrics, bands = asked["metrics"].split(","), asked.get("bands") != "false"
    return [
        curves(runs[run], metrics, first=int(first), count=_count(count), bands=bands, **grid)
        for run, first, count in json.loads(asked["runs"])
    ]


def _summary(runs: Runs, asked: Mapping[str, str]) -> Any:
    from hpt_ray.tools.report.load import load_run  # only here: slow to import
    from hpt_ray.tools.report.summary import summary

    return summary(load_run(runs[asked["run"]].folder.root))


def _comparison(runs: Runs, asked: Mapping[str, str]) -> Any:
    from hpt_ray.tools.report.comparison import comparison
    from hpt_ray.tools.report.load import load_run

    return comparison([load_run(runs[run].folder.root) for run in json.loads(asked["runs"])])


def _methods(runs: Runs, asked: Mapping[str, str]) -> Any:
    """Of `runs`, those of one configuration together: `[label, ids]` each."""
    from hpt_ray.tools.report.load import RunData, flat_keys
    from hpt_ray.tools.report.methods import group_runs

    ids = {runs[run].folder.root: run for run in json.loads(asked["runs"])}
    methods = group_runs([RunData(root, flat_keys(runs[run].config)) for root, run in ids.items()])
    return [[method.label, [ids[run.root] for run in method.runs]] for method in methods]


def _config(runs: Runs, asked: Mapping[str, str]) -> Any:
    return runs[asked["run"]].config


def _gate(runs: Runs, asked: Mapping[str, str]) -> Any:
    rows, columns = (_span(asked.get(name, "")) for name in ("rows", "columns"))
    order, find, by_attempt = (
        asked.get("order", "solved"),
        asked.get("find", ""),
        asked.get("by") == "attempt",
    )
    history = runs[asked["run"]].history.table()
    return gate_map(history, order=order, by_attempt=by_attempt, find=find, rows=rows, columns=columns)


def _rollouts(runs: Runs, asked: Mapping[str, str]) -> Any:
    after = _span(asked["after"]) if asked.get("after") else None
    return rollouts.search(runs[asked["run"]].folder, rollouts.Wanted.of(asked), after)


def _choices(runs: Runs, asked: Mapping[str, str]) -> Any:
    return rollouts.choices(runs[asked["run"]].folder, rollouts.kind_of(asked))


def _group(runs: Runs, asked: Mapping[str, str]) -> Any:
    folder, step, kind = runs[asked["run"]].folder, int(asked["step"]), rollouts.kind_of(asked)
    by_prompt = "prompt" in asked
    number = rollouts.find_group(folder, step, asked["prompt"], kind) if by_prompt else int(asked["group"])
    return rollouts.group(folder, step, number, kind)


def _tokens(runs: Runs, asked: Mapping[str, str]) -> Any:
    run = runs[asked["run"]]
    place = int(asked["step"]), int(asked["row"])
    return rollouts.tokens(run.folder, *place, run.tokenizer_files(), rollouts.kind_of(asked))


def _timeline(runs: Runs, asked: Mapping[str, str]) -> Any:
    return timeline(runs[asked["run"]].folder.trace, int(asked["step"]))


def _span(text: str) -> tuple[int, int]:
    """Example: `"3,10"`; empty is everything."""
    first, _, last = (text or "0,1000000000").partition(",")
    return int(first), int(last)


def _count(text: str | int) -> int:
    number = int(text)
    if not 1 <= number <= 10**6:
        raise ValueError(f"{number} is not between 1 and 1,000,000")
    return number


ANSWERS: dict[str, Answer] = {
    "runs": _runs,
    "metrics": lambda runs, asked: metric_names(),
    "summary": _summary,
    "comparison": _comparison,
    "methods": _methods,
    "curves": _curves,
    "config": _config,
    "gate": _gate,
    "rollouts": _rollouts,
    "choices": _choices,
    "group": _group,
    "tokens": _tokens,
    "timeline": _timeline,
}
