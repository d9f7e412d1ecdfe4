"""The data card: what became of the rows of a run's files, what the model will see of them, and who grades it.

Records, and what they look like in a terminal. `driver/data_card.py` makes them from the data; data_card.json in the
run folder holds them for the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hpt_ray.observe.tables import two_columns
from hpt_ray.text import printable


@dataclass(frozen=True, slots=True)
class Lengths:
    """Quantiles of lengths in tokens, against their limit."""

    limit: int
    min: int
    median: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its demonstration as the model sees them, special tokens among the text."""

    id: str
    prompt: str
    demonstration: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A demonstration that the reward function does not accept. `result` is its outcome and why."""

    id: str
    prompt: str
    demonstration: str
    reference: str
    extracted: str | None
    result: str


@dataclass(frozen=True, slots=True)
class RewardCheck:
    """What the reward functions say of demonstrations of the set. `num_graded` of 0: there are none, or not used."""

    functions: tuple[str, ...]
    num_graded: int
    num_accepted: int
    refused: Refused | None
    better: str | None = (
        None  # where most are refused: a reward function of ours that accepts more, and how many
    )

    @property
    def in_words(self) -> str:
        """Example: `boxed accepts 60 of 64 demonstrations`."""
        names = ", ".join(self.functions)
        if not self.num_graded:
            return (
                f"{names} works on rows of this set; there are no demonstrations in use that it could accept"
            )
        return f"{names} accepts {self.num_accepted} of {self.num_graded} demonstrations"


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The training files of one phase. `demonstrations` is None where they are not used.

    `reward_check` is None where nothing is graded. `warnings` are sentences that nobody must overlook; `refusal` says
    why a run cannot train on the set.
    """

    title: str
    read_as: tuple[str, ...]
    rows: int
    kept: int
    dropped: Mapping[str, int]
    demonstrations: int | None
    demonstrations_dropped: Mapping[str, int]
    prompt_tokens: Lengths
    demonstration_tokens: Lengths | None
    example: Example
    reward_check: RewardCheck | None
    warnings: tuple[str, ...]
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    name: str
    rows: int
    kept: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DataCard:
    """All data of one run: a training set for each phase, and the evaluation sets."""

    training: tuple[TrainingSet, ...]
    evaluation: tuple[EvaluationSet, ...] = field(default=())

    @property
    def warnings(self) -> list[str]:
        """Those of all sets, each once."""
        return list(dict.fromkeys(text for one in self.training for text in one.warnings))

    @property
    def refusal(self) -> str | None:
        """The first set's that has one."""
        return next((one.refusal for one in self.training if one.refusal), None)


def card_tables(card: DataCard) -> RenderableType:
    """All of the card but its warnings."""
    parts: list[RenderableType] = []
    for one in card.training:
        parts += [Text(one.title, style="bold"), _facts(one), _lengths(one), _texts(one)]
    if card.evaluation:
        parts.append(_evaluation(card.evaluation))
    return Lines(*parts)


def warning_panel(warnings: Sequence[str]) -> RenderableType:
    """A box in bold red that nobody overlooks."""
    return Panel(
        Text(printable("\n\n".join(warnings))),
        title="Look at your data first",
        style="bold red",
        box=box.HEAVY,
        padding=(1, 2),
    )


def _facts(one: TrainingSet) -> RenderableType:
    table = two_columns()
    for line in one.read_as:
        table.add_row("file", Text(printable(line)))
    table.add_row("rows", f"{one.rows:,} read, {one.kept:,} kept; dropped: {dropped_in_words(one.dropped)}")
    if one.demonstrations is None:
        demonstrations = "not used"
    else:
        demonstrations = f"{one.demonstrations:,}; dropped: {dropped_in_words(one.demonstrations_dropped)}"
    table.add_row("demonstrations", demonstrations)
    without = "failed" if one.refusal else "not run: no ground truth, and nothing is graded"
    table.add_row("reward function", Text(one.reward_check.in_words if one.reward_check else without))
    return table


def dropped_in_words(counts: Mapping[str, int]) -> str:
    """Example: `20 demonstration_too_long`."""
    return ", ".join(f"{n:,} {reason}" for reason, n in counts.items() if n) or "none"


def _lengths(one: TrainingSet) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("tokens")
    for name in ("min", "median", "90 %", "99 %", "max", "limit"):
        table.add_column(name, justify="right")
    for name, lengths in (("prompts", one.prompt_tokens), ("demonstrations", one.demonstration_tokens)):
        if lengths is not None:
            numbers = (lengths.min, lengths.median, lengths.p90, lengths.p99, lengths.max, lengths.limit)
            table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _texts(one: TrainingSet) -> RenderableType:
    table = two_columns()
    example, refused = one.example, one.reward_check.refused if one.reward_check else None
    table.add_row("the model sees", Text(printable(example.prompt), style="cyan"))
    if example.demonstration is not None:
        table.add_row("and learns", Text(printable(example.demonstration), style="green"))
    if refused is not None:
        table.add_row("", "")
        table.add_row("not accepted", Text(printable(refused.id)))
        for name, text in details_of(refused).items():
            table.add_row(name, Text(printable(text)))
    table.add_row("", "")
    return table


def details_of(refused: Refused) -> dict[str, str]:
    """What is known of a demonstration that was not accepted, by name."""
    return {
        "prompt": refused.prompt,
        "demonstration": refused.demonstration,
        "reference": refused.reference,
        "read from it": "nothing" if refused.extracted is None else refused.extracted,
        "result": refused.result,
    }


def _evaluation(sets: Sequence[EvaluationSet]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("evaluation set", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("kept", justify="right")
    table.add_column("dropped", overflow="fold")
    for one in sets:
        table.add_row(Text(one.name), f"{one.rows:,}", f"{one.kept:,}", dropped_in_words(one.dropped))
    return table
