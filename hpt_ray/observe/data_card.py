"""The data card: what became of the rows of a run's files, what the model will see of them, and who grades it.

Records, and what they look like in a terminal. `driver/data_card.py` makes them from the data; data_card.json in the
run folder holds them for the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.panel import Panel
from rich.text import Text

from hpt_ray.config import renamed
from hpt_ray.observe.tables import plain_table, two_columns
from hpt_ray.text import printable

QUANTILES = {"min": "min", "median": "median", "p90": "90 %", "p99": "99 %", "max": "max", "limit": "limit"}
SET_COLUMNS = ("evaluation set", "rows", "kept", "dropped")
STYLES = {"the model sees": "cyan", "and learns": "green"}


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
    # Where most are refused: a reward function of ours that accepts more, and how many.
    better: str | None = None

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
class Rehearsal:
    """The rows of `data.rehearsal`."""

    rows: int
    kept: int
    dropped: Mapping[str, int]
    per_step: int


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
    rehearsal: Rehearsal | None = None


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    name: str
    rows: int
    kept: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DataCard:
    """All data of one run: a training set for each phase, and the evaluation sets."""

    training: tuple[TrainingSet, ...] = ()
    evaluation: tuple[EvaluationSet, ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DataCard:
        """What data_card.json holds, also of an older version; empty for a run without one."""
        training = [renamed.fields(one) for one in content.get("training", ())]
        return TypeAdapter(cls).validate_python({**content, "training": training})

    @property
    def warnings(self) -> list[str]:
        """Those of all sets, each once."""
        return list(dict.fromkeys(text for one in self.training for text in one.warnings))

    @property
    def refusal(self) -> str | None:
        """The first set's that has one."""
        return next((one.refusal for one in self.training if one.refusal), None)


def facts_of(one: TrainingSet) -> list[tuple[str, str]]:
    """What was read, as names and texts."""
    demonstrations = "not used"
    if one.demonstrations is not None:
        demonstrations = f"{one.demonstrations:,}; dropped: {dropped_in_words(one.demonstrations_dropped)}"
    rehearsal = []
    if found := one.rehearsal:
        rows = f"{found.rows:,} rows read, {found.kept:,} kept; dropped: {dropped_in_words(found.dropped)}"
        rehearsal = [("rehearsal", f"{rows}; {found.per_step:,} of them in each step")]
    without = "failed" if one.refusal else "not run: no ground truth, and nothing is graded"
    return [
        *(("file", line) for line in one.read_as),
        ("rows", f"{one.rows:,} read, {one.kept:,} kept; dropped: {dropped_in_words(one.dropped)}"),
        ("demonstrations", demonstrations),
        *rehearsal,
        ("reward function", one.reward_check.in_words if one.reward_check else without),
    ]


def dropped_in_words(counts: Mapping[str, int]) -> str:
    """Example: `20 demonstration_too_long`."""
    return ", ".join(f"{n:,} {reason}" for reason, n in counts.items() if n) or "none"


def length_rows(one: TrainingSet) -> list[list[str]]:
    """A row of `QUANTILES` for prompts, and one for demonstrations where there are any."""
    found = {"prompts": one.prompt_tokens, "demonstrations": one.demonstration_tokens}
    return [
        [name, *(f"{getattr(lengths, key):,}" for key in QUANTILES)]
        for name, lengths in found.items()
        if lengths
    ]


def texts_of(one: TrainingSet) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """The example, and the demonstration that was not accepted: what it is, its id, its texts by name."""
    seen = [("the model sees", one.example.prompt)]
    if one.example.demonstration is not None:
        seen.append(("and learns", one.example.demonstration))
    yield "example", one.example.id, seen
    if one.reward_check and (refused := one.reward_check.refused):
        details = [
            ("prompt", refused.prompt),
            ("demonstration", refused.demonstration),
            ("reference", refused.reference),
            ("read from it", "nothing" if refused.extracted is None else refused.extracted),
            ("result", refused.result),
        ]
        yield "not accepted", refused.id, details


def evaluation_rows(sets: Sequence[EvaluationSet]) -> list[list[str]]:
    """A row of `SET_COLUMNS` for each set."""
    return [[one.name, f"{one.rows:,}", f"{one.kept:,}", dropped_in_words(one.dropped)] for one in sets]


def card_tables(card: DataCard) -> RenderableType:
    """All of the card but its warnings, for a terminal."""
    parts: list[RenderableType] = []
    for one in card.training:
        facts, texts = two_columns(), two_columns()
        for name, text in facts_of(one):
            facts.add_row(name, Text(printable(text)))
        for what, name, pairs in texts_of(one):
            texts.add_row(what, Text(printable(name)))
            for name, text in pairs:
                texts.add_row(name, Text(printable(text), style=STYLES.get(name, "")))
            texts.add_row()
        lengths = plain_table(["tokens", *QUANTILES.values()], length_rows(one))
        parts += [Text(one.title, style="bold"), facts, lengths, texts]
    if card.evaluation:
        parts.append(plain_table(SET_COLUMNS, evaluation_rows(card.evaluation), align="lrrl"))
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
