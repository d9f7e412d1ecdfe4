"""Rows of prompt files: of any kind that `files` reads, in any shape that `shapes` recognises.

`open_rows(path)` says how a file is read and yields `SourceRow`s in file order with only a small batch of rows in
memory, whatever the size of the file or of its row groups.

A value of the wrong type raises UserError with file, row, column, what was found and what to do. Rows are counted
from 1. A value that is absent (null) is no error; whether a row is of use (length, empty texts) is for `intake`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hpt_ray.data.files import ROWS_PER_READ, Raw, read_raw
from hpt_ray.data.messages import (
    check_demonstration,
    check_prompt,
    check_text,
    parsed,
    split_conversation,
    wrong,
)
from hpt_ray.data.shapes import MARK, Reading, has_column, no_ground_truth, recognise
from hpt_ray.data.template import Message
from hpt_ray.errors import UserError

# What a reward function gets as prompt and response, and what is spread out, is not among the further columns.
NOT_EXTRA = (
    "prompt",
    "completion",
    "target",
    "messages",
    "conversations",
    "conversation",
    "chosen",
    "extra_info",
    "chat_template_kwargs",
)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as found, checked for its types."""

    path: Path
    number: int  # from 1; the line number in JSON lines
    messages: list[Message]
    demonstration: str | None
    ground_truth: Any
    data_source: str
    extra: dict[str, Any]  # the further columns, with the fields of `extra_info`
    source: str | list[Message] = ""  # the prompt as the file has it
    published_id: str | None = None  # [<split>/]<index> of `extra_info`
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # as TRL's column of the same name

    @property
    def where(self) -> str:
        return f"{self.path}, row {self.number}"


def open_rows(
    path: Path,
    columns: Mapping[str, str],
    *,
    held_out: bool = False,
    needs_ground_truth: bool = False,
    objects: bool = False,
) -> tuple[Reading | None, Iterator[SourceRow]]:
    """How a file is read, None for an empty one, and its rows in order. Raises UserError (see above).

    `held_out`: a file to evaluate on, which is recognised by itself where it lacks the columns of `data.columns`.
    `objects`: a ground truth may be an object or a truth value.
    """
    raw_rows = read_raw(path)
    first = list(islice(raw_rows, ROWS_PER_READ))
    if not first:
        return None, iter(())
    rows = [raw for _, raw in first]
    if held_out and not all(has_column(rows, column) for column in columns.values()):
        columns = {}
    reading = recognise(path, rows, columns, objects=objects)
    if needs_ground_truth and reading.ground_truth is None:
        raise no_ground_truth(path, rows, reading, held_out=held_out)
    return reading, (take_apart(reading, path, number, raw) for number, raw in chain(first, raw_rows))


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[SourceRow]:
    """All rows of one file, in order."""
    yield from open_rows(path, columns or {})[1]


def take_apart(reading: Reading, path: Path, number: int, raw: Raw) -> SourceRow:
    """One row as `reading` says. Raises UserError for a value of the wrong type."""
    where = f"{path}, row {number}"
    source, messages, demonstration = _prompt(where, reading, raw)
    ground_truth = _ground_truth(where, reading, raw)
    if reading.demonstration is not None:
        value = _at(where, raw, reading.demonstration)
        demonstration = check_demonstration(where, reading.demonstration, value)
        if reading.label and raw.get(reading.label) is False:
            demonstration = None
    if reading.is_marked and isinstance(ground_truth, str):
        found = MARK.search(ground_truth)
        if reading.demonstration is None and not reading.is_conversation:
            demonstration = (ground_truth[: found.start()] if found else ground_truth).strip()
        ground_truth = re.sub(r"(?<=\d),(?=\d{3})", "", found[1]) if found else None
    data_source = _at(where, raw, reading.data_source) if reading.data_source else None
    if not isinstance(data_source, str | None):
        raise wrong(where, str(reading.data_source), data_source, "a text (it may be empty)")
    extra, published_id = _extra(where, raw)
    return SourceRow(
        path,
        number,
        messages,
        demonstration,
        ground_truth,
        data_source or "",
        extra,
        source,
        published_id,
        template_kwargs={
            name: value
            for name, value in _object(where, raw, "chat_template_kwargs").items()
            if value is not None  # another row's, where a file has the same fields in every row
        },
    )


def _prompt(where: str, reading: Reading, raw: Raw) -> tuple[str | list[Message], list[Message], str | None]:
    """The prompt as the file has it, as messages, and the demonstration of a whole conversation."""
    value, demonstration = _at(where, raw, reading.prompt), None
    if reading.is_conversation:
        value, demonstration = split_conversation(where, reading.prompt, value)
        messages = value
    else:
        if reading.input is not None:
            further = check_text(where, reading.input, raw.get(reading.input))
            value = "\n".join(filter(None, [check_text(where, reading.prompt, value), further]))
        messages = check_prompt(where, reading.prompt, value)
    if reading.history is not None:
        for pair in reversed(raw.get(reading.history) or []):
            if not isinstance(pair, list) or len(pair) != 2:
                raise wrong(where, reading.history, pair, "a list of pairs [prompt, response]")
            asked, answered = (check_text(where, reading.history, text) for text in pair)
            messages = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answered},
                *messages,
            ]
    system = check_text(where, reading.system, raw.get(reading.system)) if reading.system else ""
    if system.strip() and all(message["role"] != "system" for message in messages):
        messages = [{"role": "system", "content": system}, *messages]
    is_as_written = isinstance(value, str) and len(messages) == 1
    return (value if is_as_written else messages), messages, demonstration


def _ground_truth(where: str, reading: Reading, raw: Raw) -> Any:
    if reading.ground_truth is None:
        return None
    ground_truth = _at(where, raw, reading.ground_truth)
    known = isinstance(ground_truth, str | int | float | list | dict | None)
    if not known or (isinstance(ground_truth, bool | dict) and not reading.objects):
        wanted = (
            "a text, a number or a list (only reward functions of your own, python:… or http:…, take others)"
        )
        raise wrong(where, reading.ground_truth, ground_truth, wanted)
    return (
        None if ground_truth != ground_truth else ground_truth
    )  # NaN is how pandas writes that there is none


def _extra(where: str, raw: Raw) -> tuple[dict[str, Any], str | None]:
    """The further columns, and the id that the publisher gave the row."""
    fields = _object(where, raw, "extra_info")
    extra = {name: value for name, value in raw.items() if name not in NOT_EXTRA} | fields
    index, split = fields.get("index"), fields.get("split")
    if index is None:
        return extra, None
    return extra, "/".join(str(part) for part in (split, index) if part not in (None, ""))


def _object(where: str, raw: Raw, column: str) -> dict[str, Any]:
    """A column of objects, which may be written as texts; an empty one where there is none."""
    value = raw.get(column) or {}
    value = parsed(value) if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise wrong(where, column, value, "an object")
    return value


def _at(where: str, raw: Raw, column: str) -> Any:
    """The value of a column, or of a field in a column of objects; None where it is null or not there."""
    head, dot, rest = column.partition(".")
    if column in raw or not dot:
        return raw.get(column)
    inner = raw.get(head)
    if inner is None:
        return None
    inner = parsed(inner) if isinstance(inner, str) else inner
    if not isinstance(inner, dict):
        raise wrong(where, head, inner, f"an object with `{rest}`")
    if not has_column([inner], rest):
        raise UserError(
            f"{where}: `{column}` is missing; found {', '.join(inner) or 'nothing'}. Rename the field, say where it "
            "is in data.columns, or write the file anew."
        )
    return _at(where, inner, rest)
