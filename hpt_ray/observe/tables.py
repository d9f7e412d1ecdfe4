"""What is shown at the start, now and then, and at the end: functions from records to rich tables.

The start summary derives everything about batches from the three sizes a person sets; the samples show a
few responses with their results; the end summary says what came of the run and where to look. Nothing is
printed here, and no text is read as rich markup: a response may hold brackets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from hpt_ray.observe.step_line import short_time
from hpt_ray.text import printable
from hpt_ray.types import Decision, Group, RewardResult, Rollout

PROMPT_CHARS, RESPONSE_CHARS = 600, 2_000  # of one text in a table of samples


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
    folder: Path,
    turn_end: str | None = None,
) -> RenderableType:
    """The three sizes, what follows from them, what ends a response, and where the run is written."""
    table = two_columns()
    table.add_row("algorithm", f"{config.algorithm.name}: {config.algorithm.mode}")
    table.add_row("model", f"{config.model.path} ({config.model.dtype})")
    for name in ("prompts_per_step", "group_size", "max_tokens_per_micro_batch"):
        table.add_row(Text(name, style="bold"), f"{getattr(config, name):,}")
    for name, number in batch_facts(config).items():
        table.add_row(name, f"{number:,}")
    if turn_end is not None:
        table.add_row("a response ends with", Text(turn_end))
    table.add_row("run folder", Text(str(folder), overflow="fold"))
    return Lines(Text(title, style="bold"), table)


@dataclass(frozen=True, slots=True)
class Shown:
    """One response as it is shown. `advantage`: None where it trained nothing, or is known to the learner only."""

    group: Group
    decision: Decision
    rollout: Rollout
    result: RewardResult
    advantage: float | None = None


def table_of_samples(samples: Sequence[Shown], *, step: int) -> RenderableType:
    """Prompt, response, reference, reward and advantage, each over the whole width.

    Only a very long text is cut, to its beginning and its end.
    """
    table = Table(box=box.SIMPLE_HEAD, show_header=False, expand=True, padding=(0, 1, 0, 0))
    table.add_column(style="dim", width=len("trained on"))
    table.add_column(overflow="fold", ratio=1)
    for shown in samples:
        prompt, result = shown.group.prompt, shown.result
        table.add_row("prompt", _text(prompt.text, PROMPT_CHARS))
        table.add_row("response", _text(shown.rollout.text, RESPONSE_CHARS))
        table.add_row("reference", _text(str(prompt.ground_truth), PROMPT_CHARS))
        if result.extracted is not None:
            table.add_row("answer", _text(result.extracted, PROMPT_CHARS))
        if result.detail:
            table.add_row("why", _text(result.detail, PROMPT_CHARS))
        table.add_row("reward", _reward(shown))
        solved = f"{shown.decision.num_correct}/{shown.decision.num_rollouts} correct"
        table.add_row("trained on", f"{branch_of(shown.decision)}, {solved}", end_section=True)
    return Lines(Text(f"Sampled responses, step {step}", style="bold"), table)


def row_of_sample(shown: Shown) -> dict[str, str | float | None]:
    """The same, whole, as a row of a tracker's table."""
    prompt, result, decision = shown.group.prompt, shown.result, shown.decision
    return {
        "prompt": prompt.text,
        "response": shown.rollout.text,
        "reference": str(prompt.ground_truth),
        "answer": result.extracted,
        "outcome": result.outcome.value,
        "why": result.detail,
        "reward": result.score,
        "advantage": shown.advantage,
        "tokens": len(shown.rollout.token_ids),
        "trained on": branch_of(decision),
        "solved": f"{decision.num_correct}/{decision.num_rollouts}",
    }


def _reward(shown: Shown) -> Text:
    """Example: `1.000 correct, advantage +0.354, 42 tokens`."""
    result = shown.result
    line = Text(f"{result.score:.3f} ")
    line.append(result.outcome.value, "green" if result.correct else "red")
    if shown.advantage is not None:
        line.append(f", advantage {shown.advantage:+.3f}")
    line.append(f", {len(shown.rollout.token_ids):,} tokens")
    if shown.rollout.truncated:
        line.append(", truncated", "yellow")
    return line


def _text(text: str, max_chars: int) -> Text:
    """A text that may hold anything: neither markup nor control characters are obeyed."""
    return Text(printable(shorten(text, max_chars)))


def end_summary(summary: Mapping[str, Any], folder: Path) -> RenderableType:
    """What came of the run. `summary` is the content of summary.json.

    Read from it: `evaluations` (see `summarize_evaluations`), `wall_s`, `steps`, and the counts
    `dropped_rows` and `failures` by reason.
    """
    head = Text(f"Done: {summary['steps']} steps in {short_time(summary['wall_s'])}", style="bold")
    parts: list[RenderableType] = [head]
    if summary["evaluations"]:
        rows = [
            [name, *(f"{point['mean']:.3f} (step {point['step']})" for point in points.values())]
            for name, points in summary["evaluations"].items()
        ]
        parts.append(plain_table(["evaluation", "first", "best", "last"], rows))
    counts = two_columns()
    counts.add_row("dropped rows", _counts(summary["dropped_rows"]))
    counts.add_row("failures", _counts(summary["failures"]))
    for label, name in _WHERE_TO_LOOK:
        counts.add_row(label, Text(str(folder / name), overflow="fold"))
    counts.add_row("curves", Text(f"hpt_ray watch {folder}", overflow="fold"))
    return Lines(*parts, counts)


_WHERE_TO_LOOK = (
    ("every step", "metrics.jsonl"),
    ("the result", "summary.json"),
    ("the model", "checkpoints"),
    ("responses", "rollouts"),
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


def plain_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, align: str = "", title: str | None = None
) -> Table:
    """A line under the header, and texts as they are.

    `align`: one letter a column, `l` or `r`; without it the first column is left and the others right.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), title=title)
    for name, side in zip(header, align or "l" + "r" * (len(header) - 1), strict=True):
        table.add_column(name, justify="left" if side == "l" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _counts(counts: Mapping[str, int | str]) -> Text:
    """How often what happened; a text, such as why a tracker is off, stands behind its name."""
    present: Sequence[str] = [
        f"{name}: {value}" if isinstance(value, str) else f"{value:,} {name}"
        for name, value in counts.items()
        if value
    ]
    return Text(", ".join(present) or "none")
