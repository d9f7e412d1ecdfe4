"""What is shown at the start, now and then, and at the end: functions from records to rich tables.

The start summary derives everything about batches from the three sizes a person sets; the samples show a
few responses with their results; the end summary says what came of the run and where to look. Nothing is
printed here, and no text is read as rich markup: a response may hold brackets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.schema import Config
from hpt_ray.observe.metrics import branch_of
from hpt_ray.observe.progress import short_time
from hpt_ray.types import Decision, Group


def batch_facts(config: Config) -> dict[str, int]:
    """What follows from the three sizes. "At most" counts full-length samples.

    A prompt gives n rollouts, one demonstration, or both, as samples; which one the algorithm chooses for
    itself (`selection.gate=auto`) is not known here, so the most is taken.
    """
    prompts, n, gate = config.prompts_per_step, config.group_size, config.selection.gate
    samples = prompts * (n + 1 if gate == "auto" else GATES[gate].samples_at_most(n))
    sample_tokens = config.data.max_prompt_tokens + config.data.max_response_tokens
    return {
        "rollouts per step": prompts * n,
        "samples per step, at most": samples,
        "tokens per step, at most": samples * sample_tokens,
        "tokens per sample, at most": sample_tokens,
        "updates per step": config.updates_per_step,
        "prompts per update": prompts // config.updates_per_step,
        "optimizer steps in all": config.run.steps * config.updates_per_step,
    }


def start_summary(
    config: Config,
    *,
    title: str,
    algorithm_mode: str,
    folder: Path,
    turn_end: str | None = None,
) -> RenderableType:
    """The three sizes, what follows from them, what ends a response, and where the run is written.

    `algorithm_mode` is the algorithm in words.
    """
    table = two_columns()
    table.add_row("algorithm", f"{config.algorithm.name}: {algorithm_mode}")
    table.add_row("model", f"{config.model.path} ({config.model.dtype})")
    for name in ("prompts_per_step", "group_size", "max_tokens_per_micro_batch"):
        table.add_row(Text(name, style="bold"), f"{getattr(config, name):,}")
    for name, number in batch_facts(config).items():
        table.add_row(name, f"{number:,}")
    if turn_end is not None:
        table.add_row("a response ends with", Text(turn_end))
    table.add_row("run folder", Text(str(folder), overflow="fold"))
    return Lines(Text(title, style="bold"), table)


def table_of_samples(pairs: Iterable[tuple[Group, Decision]], *, step: int, max_chars: int = 120) -> Table:
    """The first rollout of each given prompt: prompt, response, reference, outcome and what was trained on.

    Long texts keep their beginning and their end. Prompts without a rollout are passed over.
    """
    table = Table(
        title=f"Sampled responses, step {step}", box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0)
    )
    table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("response", ratio=4, overflow="fold")
    table.add_column("reference", overflow="fold", min_width=9, max_width=16)
    table.add_column("result", min_width=10)
    table.add_column("trained on", min_width=13)
    for group, decision in pairs:
        if not group.rollouts:
            continue
        result = group.results[0]
        table.add_row(
            Text(shorten(group.prompt.text, max_chars)),
            Text(shorten(group.rollouts[0].text, max_chars)),
            Text(shorten(str(group.prompt.ground_truth), max_chars // 4)),
            Text(result.outcome.value, style="green" if result.correct else "red"),
            Text(f"{branch_of(decision)}\n{decision.num_correct}/{decision.num_rollouts} correct"),
        )
    return table


def end_summary(summary: Mapping[str, Any], folder: Path) -> RenderableType:
    """What came of the run. `summary` is the content of summary.json.

    Read from it: `evaluations` (see `summarize_evaluations`), `wall_s`, `steps`, and the counts
    `dropped_rows` and `failures` by reason.
    """
    head = Text(f"Done: {summary['steps']} steps in {short_time(summary['wall_s'])}", style="bold")
    parts: list[RenderableType] = [head]
    if summary["evaluations"]:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
        table.add_column("evaluation", overflow="fold")
        for name in ("first", "best", "last"):
            table.add_column(name, justify="right")
        for name, points in summary["evaluations"].items():
            cells = [f"{point['mean']:.3f} (step {point['step']})" for point in points.values()]
            table.add_row(Text(name), *cells)
        parts.append(table)
    counts = two_columns()
    counts.add_row("dropped rows", _counts(summary["dropped_rows"]))
    counts.add_row("failures", _counts(summary["failures"]))
    for label, name in _WHERE_TO_LOOK:
        counts.add_row(label, Text(str(folder / name), overflow="fold"))
    return Lines(*parts, counts)


_WHERE_TO_LOOK = (
    ("every step", "metrics.jsonl"),
    ("the result", "summary.json"),
    ("the model", "checkpoints"),
    ("responses", "rollouts"),
    ("curves", "tensorboard"),
)


def shorten(text: str, max_chars: int) -> str:
    """`text` without blank space around it; of a long one the beginning and the end."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    tail = max_chars // 2
    return f"{text[: max_chars - tail - 3].rstrip()} … {text[-tail:].lstrip()}"


def two_columns() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _counts(counts: Mapping[str, int | str]) -> Text:
    """How often what happened; a text, such as why a tracker is off, stands behind its name."""
    present: Sequence[str] = [
        f"{name}: {value}" if isinstance(value, str) else f"{value:,} {name}"
        for name, value in counts.items()
        if value
    ]
    return Text(", ".join(present) or "none")
