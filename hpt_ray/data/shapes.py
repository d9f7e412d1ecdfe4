"""What the columns of a file mean: the shapes that other programs write, recognised, and `data.columns`.

In: the first rows of a file. Out: a `Reading`, which says in what column the prompt is, the demonstration, the ground
truth. `SHAPES` is tried in order; docs/data.md shows an example of each. Rows are taken apart in `sources`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from hpt_ray.data.files import Raw
from hpt_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class Shape:
    """A file has this shape where it has the column `prompt` and, if any is named, one of `beside`."""

    name: str
    prompt: str
    demonstration: tuple[str, ...] = ()  # the first that is there
    beside: tuple[str, ...] = ()
    is_conversation: bool = False  # the column of the prompt goes on to the demonstration


WORKED = ("target", "completion", "response", "output", "solution")
SHAPES = (
    Shape("verl", "prompt", ("target",), beside=("reward_model", "target")),
    Shape("TRL prompt/completion", "prompt", ("completion",), beside=("completion",)),
    Shape("TRL preference", "prompt", ("chosen",), beside=("chosen",)),
    Shape("messages", "messages", is_conversation=True),
    Shape("ShareGPT", "conversations", is_conversation=True),
    Shape("ShareGPT", "conversation", is_conversation=True),
    Shape("prompt", "prompt", WORKED),
    Shape("problem", "problem", WORKED),
    Shape("question", "question", WORKED),
    Shape("query", "query", WORKED),
    Shape("Alpaca", "instruction", WORKED),
    Shape("input", "input", WORKED, beside=("label", "answer", *WORKED)),
    Shape("TRL preference", "chosen", beside=("rejected",), is_conversation=True),
)
GROUND_TRUTH = ("ground_truth", "answer", "final_answer", "expected_answer", "label", "solution")
CHOICES = ("choices", "options", "context", "passage")  # parts of a prompt that stand beside its question
LETTERED = re.compile(
    r"(?:option|choice|op|distractor|incorrect answer)?[ _]?(?:[a-e]|[1-5])"
)  # of one choice each
NOT_PUT = (
    "tools",
    "images",
    "image",
    "videos",
    "audios",
)  # further parts of a prompt, which no template here takes
SYSTEM = ("system", "system_prompt")
COLUMNS = {  # of data.columns
    "prompt": "the prompt, or a whole conversation",
    "target": "the demonstration",
    "answer": "the ground truth",
    "data_source": "what chooses the reward function",
}
MARK = re.compile(r"(?:^|\n)\s*####\s*([^\n]*?)\s*$")  # GSM8K: the worked solution, then #### 72


@dataclass(frozen=True, slots=True)
class Reading:
    """Which columns of one file are read as what. A dot in a name goes into a column of objects."""

    shape: str
    prompt: str
    demonstration: str | None = None
    ground_truth: str | None = None
    data_source: str | None = None
    system: str | None = None
    label: str | None = None  # of truth values: where it is false, the demonstration is a bad one (TRL's KTO)
    input: str | None = None  # what follows the prompt on a new line (Alpaca)
    history: str | None = None  # earlier turns, as pairs (LLaMA-Factory)
    is_conversation: bool = False  # the prompt's column goes on to the demonstration
    objects: bool = False  # a ground truth may be an object or a truth value
    is_marked: bool = False  # what stands before #### is the demonstration, unless another column is

    def __str__(self) -> str:
        """As in `Alpaca: prompt ← instruction and input, demonstration ← output, no ground truth`."""
        prompt = " and ".join(filter(None, [self.history, self.prompt, self.input]))
        demonstration, truth = self.demonstration, self.ground_truth
        if self.is_conversation:
            demonstration = f"last assistant turn of {self.prompt}"
        elif self.is_marked and demonstration is None:
            demonstration = f"{truth} before ####"
        if self.label:
            demonstration = f"{demonstration} where {self.label}"
        if truth and self.is_marked:
            truth += " after ####"
        parts = {
            "demonstration": demonstration,
            "ground truth": truth,
            "data source": self.data_source,
            "system message": self.system,
        }
        found = [f"{role} ← {column}" for role, column in parts.items() if column]
        absent = [f"no {role}" for role in ("demonstration", "ground truth") if not parts[role]]
        return f"{self.shape}: {', '.join([f'prompt ← {prompt}', *found, *absent])}"


def recognise(
    path: Path, rows: Sequence[Raw], columns: Mapping[str, str], *, objects: bool = False
) -> Reading:
    """How a file with these first rows is read; `columns` are those of `data.columns`.

    `objects`: a ground truth may be an object or a truth value.

    Raises UserError where a column is named that is not there, or where no shape fits and no prompt is named.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    for role, column in columns.items():
        if not has_column(rows, column):
            near = difflib.get_close_matches(column, names, n=1)
            raise UserError(
                f"{path}: data.columns says `{role}: {column}`, and there is no such column. There are: "
                f"{', '.join(names)}." + (f" Did you mean {near[0]}?" if near else "")
            )
    known = {name.strip().lower(): name for name in reversed(names)}
    if "prompt" in columns:
        shape = Shape("data.columns says", columns["prompt"], WORKED)
        known[shape.prompt] = shape.prompt
    else:
        found = next((shape for shape in SHAPES if _fits(shape, known)), None)
        if found is None:
            raise _unknown(path, rows, names)
        shape = found
        _check_prompt_is_whole(path, rows, shape, known)
    prompt = known[shape.prompt]
    is_alpaca = shape.name == "Alpaca"
    is_conversation = shape.is_conversation or (
        "prompt" in columns and "target" not in columns and _ends_with_assistant(rows, prompt)
    )
    demonstration = columns.get("target") or _first(
        known, () if is_conversation else shape.demonstration, prompt
    )
    truth = columns.get("answer") or _ground_truth(
        rows, known, {prompt, demonstration}, bool if objects else bool | dict
    )
    if shape.name == "prompt" and demonstration == known.get("solution") and not truth:
        demonstration, truth = None, demonstration  # as in the data sets that TRL trains GRPO on
    label = known.get("label", "") if shape.name == "TRL prompt/completion" else ""
    is_marked = truth is not None and any(MARK.search(str(value_at(row, truth) or "")) for row in rows)
    return Reading(
        shape=shape.name,
        prompt=prompt,
        demonstration=demonstration,
        ground_truth=truth,
        data_source=columns.get("data_source") or known.get("data_source"),
        system=None if shape.name == "verl" else _first(known, SYSTEM, prompt),
        label=label if any(isinstance(row.get(label), bool) for row in rows) else None,
        input=_first(known, ("input", "context"), prompt) if is_alpaca else None,
        history=known.get("history") if is_alpaca else None,
        is_conversation=is_conversation and "target" not in columns,
        objects=objects,
        is_marked=is_marked and "reward_model" not in known,
    )


def has_column(rows: Sequence[Raw], column: str) -> bool:
    """Whether one of these rows has it, null or not."""
    head, _, rest = column.partition(".")
    inner = [row[head] for row in rows if isinstance(row.get(head), dict)]
    return any(column in row for row in rows) or (rest != "" and has_column(inner, rest))


def value_at(row: Raw, column: str) -> Any:
    """The value under a name, which may go into an object; None where there is none."""
    head, dot, rest = column.partition(".")
    if column in row or not dot:
        return row.get(column)
    inner = row.get(head)
    return value_at(inner, rest) if isinstance(inner, dict) else None


def _fits(shape: Shape, known: Mapping[str, str]) -> bool:
    return shape.prompt in known and (not shape.beside or any(name in known for name in shape.beside))


def _first(known: Mapping[str, str], names: Iterable[str], taken: str) -> str | None:
    return next((known[name] for name in names if name in known and known[name] != taken), None)


def _ground_truth(
    rows: Sequence[Raw], known: Mapping[str, str], taken: set[str | None], unusable: type | UnionType
) -> str | None:
    """The column of the ground truth: verl's, else the first of `GROUND_TRUTH` whose values can be one."""
    if "reward_model" in known:
        return f"{known['reward_model']}.ground_truth"
    found = [known[name] for name in GROUND_TRUTH if name in known and known[name] not in taken]
    usable = [
        column
        for column in found
        if not any(isinstance(row.get(column), unusable) for row in rows)  # a label of TRL's KTO is a bool
    ]
    filled = [column for column in usable if _is_filled(rows, column)]
    return next(iter([*filled, *usable]), None)


def _is_filled(rows: Sequence[Raw], column: str) -> bool:
    return any(row.get(column) not in (None, "", "[]", []) for row in rows)


def _ends_with_assistant(rows: Sequence[Raw], column: str) -> bool:
    for row in rows:
        value = value_at(row, column)
        if isinstance(value, list) and value and isinstance(value[-1], dict):
            return (value[-1].get("role") or value[-1].get("from")) in (
                "assistant",
                "gpt",
                "chatgpt",
                "bot",
                "model",
            )
    return False


# -- what cannot be read ---------------------------------------------------------------------------


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UserError where `data.columns` names something that is not read from a column."""
    for role in columns:
        if role not in COLUMNS:
            known = ", ".join(f"{name} ({meaning})" for name, meaning in COLUMNS.items())
            raise UserError(
                f"data.columns names `{role}`; it says in which column of the file these are: {known}. All further "
                "columns reach the reward function under their own names."
            )


def _check_prompt_is_whole(path: Path, rows: Sequence[Raw], shape: Shape, known: Mapping[str, str]) -> None:
    """Raise UserError where choices, tools or images belong to the prompt and are not in its column."""
    prompt = known[shape.prompt]
    parts = (*CHOICES, *NOT_PUT) if shape.prompt in ("question", "problem", "query") else NOT_PUT
    found = next((known[name] for name in parts if name in known and _is_filled(rows, known[name])), None)
    lettered = [known[name] for name in known if LETTERED.fullmatch(name)]
    if parts != NOT_PUT and sum(isinstance(rows[0].get(name), str) for name in lettered) > 1:
        found = found or lettered[-1]
    if found:
        raise UserError(
            f"{path}: the column `{found}` is no part of the prompt, which would be `{prompt}` alone. Write "
            f"both into one column, or, if they are not meant: data.columns={{prompt: {_quoted(prompt)}}}."
        )


def no_ground_truth(path: Path, rows: Sequence[Raw], reading: Reading, *, held_out: bool) -> UserError:
    """The error for a file that lacks what its prompts' responses must be compared with."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    others = ", ".join(name for name in GROUND_TRUTH if name != "answer")
    column = reading.demonstration
    boxes = ""
    if column is not None and any("\\boxed{" in str(value_at(row, column)) for row in rows):
        boxes = f" The demonstrations hold boxes to compare with: data.columns={{answer: {_quoted(column)}}}."
    without = "Training on demonstrations alone (algorithm.name=sft) needs none, and a reward function"
    unusable = [name for name in names if name.lower() in GROUND_TRUTH and name != column]
    but = f" `{unusable[0]}` holds {_kind(rows, unusable[0])} values, which are none." if unusable else ""
    return UserError(
        f"{path}: the column `answer` is missing, the ground truth that responses are compared with (also found under "
        f"{others}).{but} The columns are {', '.join(names)}. Add it, or say which it is: "
        f"data.columns={{answer: COLUMN}}."
        f"{boxes} {'A reward function' if held_out else without} of your own (python:…, http:…) may do without."
    )


def _unknown(path: Path, rows: Sequence[Raw], names: list[str]) -> UserError:
    fields = [
        f"{name}.{field}" for name in names if isinstance(rows[0].get(name), dict) for field in rows[0][name]
    ]
    guess = {"prompt": "COLUMN"} | _guess(rows, [*names, *fields])
    written = ", ".join(f"{role}: {_quoted(column)}" for role, column in guess.items())
    return UserError(
        f"{path}: its columns are of no known shape. Found: "
        f"{', '.join(f'{name} ({_kind(rows, name)})' for name in names) or 'none'}. Say which is which, as in "
        f"data.columns={{{written}}}: the prompt, the "
        "demonstration (target) and the ground truth (answer), where there are such. Known shapes: docs/data.md."
    )


def _guess(rows: Sequence[Raw], names: list[str]) -> dict[str, str]:
    """Which column may be what: by its name, else by its values, among columns of texts and numbers."""
    values = {
        name: [str(value_at(row, name)) for row in rows if _is_value(value_at(row, name))] for name in names
    }
    values = {
        name: texts
        for name, texts in values.items()
        if texts and not re.search(r"(?i)(^|_)(uuid|id|idx|index|url)$", name)
    }

    def share(name: str, is_so: Callable[[str], bool]) -> float:
        return sum(map(is_so, values[name])) / len(values[name])

    prose = [name for name in values if share(name, lambda text: text.count(" ") > 1) > 0.5]
    prose.sort(key=lambda name: share(name, lambda text: "?" in text) <= 0.5)  # what asks goes first
    guess: dict[str, str] = {}
    for role, known in {
        "prompt": [shape.prompt for shape in SHAPES],
        "target": WORKED,
        "answer": [name for name in GROUND_TRUTH if name not in WORKED],
    }.items():
        last = {name: name.lower().rpartition(".")[2] for name in values}
        near = [name for name in values if difflib.get_close_matches(last[name], known, n=1, cutoff=0.75)]
        if role == "answer":
            target = guess.get("target", "")
            short = [name for name in values if name not in prose]
            # A result stands in what is worked out.
            short.sort(
                key=lambda name: -sum(str(value_at(row, name)) in str(value_at(row, target)) for row in rows)
            )
        candidates = [*near, *(short if role == "answer" else prose)]
        found = next((name for name in candidates if name not in guess.values()), None)
        if found is not None:
            guess[role] = found
    return guess


def _is_value(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def _kind(rows: Sequence[Raw], name: str) -> str:
    value = next((row[name] for row in rows if row.get(name) is not None), None)
    kinds = {str: "text", bool: "bool", int: "number", float: "number", list: "list", dict: "object"}
    return "empty" if value is None else kinds.get(type(value), type(value).__name__)


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[\w.]+", column) else json.dumps(column, ensure_ascii=False)
