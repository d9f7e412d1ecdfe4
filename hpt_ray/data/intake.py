"""Source rows become prompts as they are stored: rendered, tokenised, those that fit.

`Intake` takes files and yields Arrow record batches in `SCHEMA`; its `tally` says what became of each
row. What does not fit is dropped and counted, never truncated; rows = kept + dropped, always:

    no_ground_truth                            where one is needed
    empty_prompt, duplicate                    the row is of no use (duplicate: same id, same prompt)
    prompt_too_long                            more than `max_prompt_tokens`
    demonstration_too_long                     more than `max_response_tokens`, end token included
    demonstration_past_end                     goes on after an end token, where a rollout would stop
    demonstration_thinks_on                    never closes the thinking that the prompt opened
    no_demonstration                           the row has none

The last four drop the prompt only where demonstrations are "required"; where they are "optional"
the prompt stays without its demonstration, which is counted too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from hpt_ray.data.files import ROWS_PER_READ
from hpt_ray.data.sources import SourceRow, open_rows
from hpt_ray.data.template import Template, strip_opening
from hpt_ray.errors import UserError
from hpt_ray.types import opening_of

Demonstrations = Literal["required", "optional", "ignored"]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("ground_truth", pa.string()),  # JSON
        ("data_source", pa.string()),
        ("demonstration", pa.string()),
        ("demonstration_ids", pa.list_(pa.int32())),
        ("extra", pa.string()),  # JSON
        ("source", pa.string()),  # JSON
    ]
)


@dataclass(slots=True)
class Tally:
    """What became of the rows: rows = kept + Σ dropped. Lengths are in tokens."""

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    demonstrations: int = 0
    demonstrations_left_out: dict[str, int] = field(default_factory=dict)  # the prompt was kept
    prompt_tokens: int = 0
    prompt_tokens_max: int = 0
    demonstration_tokens: int = 0
    demonstration_tokens_max: int = 0
    longest_prompt: int = (
        0  # of all that were read, dropped ones too; one more than the limit if not tokenised
    )
    longest_demonstration: int = 0
    read_as: dict[str, list[str]] = field(default_factory=dict)  # how files are read → their names


@dataclass(frozen=True, slots=True)
class Needs:
    """What is asked of the rows, and which columns a user says they are in (`data.columns`).

    `held_out`: a set to evaluate on. Its files need not have those columns, and of a folder with several splits
    they are the test split. `objects`: a ground truth may be an object or a truth value.
    """

    demonstrations: Demonstrations
    ground_truth: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    held_out: bool = False
    objects: bool = False


@dataclass(slots=True)
class _Candidate:
    """A row on its way into the set."""

    row: SourceRow
    prompt: str
    prompt_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    demonstration: str | None = None
    demonstration_ids: np.ndarray | None = None
    is_overlong: bool = False  # the demonstration, for certain: it was not tokenised
    left_out: str | None = None  # why the prompt goes without its demonstration
    id: str = ""


class Intake:
    """Source rows in, record batches of those that fit out; `tally` counts on the way."""

    def __init__(
        self,
        template: Template,
        max_prompt_tokens: int,
        max_response_tokens: int,
        needs: Needs,
    ) -> None:
        self.tally = Tally()
        self._template = template
        self._max_prompt_tokens = max_prompt_tokens
        self._max_response_tokens = max_response_tokens
        self._needs = needs
        self._prompt_hashes: dict[str, bytes] = {}  # by id

    def record_batches(self, files: list[Path]) -> Iterator[pa.RecordBatch]:
        """One record batch per `ROWS_PER_READ` rows read, without the rows that are dropped."""
        needs = self._needs
        for file in files:
            reading, rows = open_rows(
                file,
                needs.columns,
                held_out=needs.held_out,
                needs_ground_truth=needs.ground_truth,
                objects=needs.objects,
            )
            if reading is not None:
                self.tally.read_as.setdefault(str(reading), []).append(file.name)
            while read := list(islice(rows, ROWS_PER_READ)):
                self.tally.rows += len(read)
                usable = [self._render(row) for row in read if self._is_usable(row)]
                short = self._with_prompt_ids(usable)
                fitting = self._with_demonstrations(short)
                kept = [candidate for candidate in fitting if self._take_id(candidate)]
                self._count(kept)
                yield _to_record_batch(kept)

    def _drop(self, reason: str) -> bool:
        _count_one(self.tally.dropped, reason)
        return False

    def _is_usable(self, row: SourceRow) -> bool:
        if self._needs.ground_truth and row.ground_truth in (None, "", [], {}):
            return self._drop("no_ground_truth")
        if not any(message["content"].strip() for message in row.messages if message["role"] == "user"):
            return self._drop("empty_prompt")
        return True

    def _render(self, row: SourceRow) -> _Candidate:
        for what, text in (("data source", row.data_source), ("id", row.published_id or "")):
            _check_text(row, what, text)
        for message in row.messages:
            _check_text(row, "prompt", message["content"])
        _check_text(row, "demonstration", row.demonstration or "")
        try:
            prompt = self._template.render(row.messages, row.template_kwargs)
        except UserError as error:
            raise UserError(f"{row.where}: {str(error).removesuffix('.')}.") from error
        candidate = _Candidate(row, prompt)
        if self._needs.demonstrations != "ignored" and row.demonstration and row.demonstration.strip():
            candidate.demonstration = strip_opening(prompt, row.demonstration)
        return candidate

    def _with_prompt_ids(self, candidates: list[_Candidate]) -> list[_Candidate]:
        candidates = [candidate for candidate in candidates if self._may_fit(candidate)]
        encoded = self._template.encode_prompts([candidate.prompt for candidate in candidates])
        for candidate, ids in zip(candidates, encoded, strict=True):
            candidate.prompt_ids = ids
            self.tally.longest_prompt = max(self.tally.longest_prompt, len(ids))
        return [
            candidate
            for candidate, ids in zip(candidates, encoded, strict=True)
            if len(ids) <= self._max_prompt_tokens or self._drop("prompt_too_long")
        ]

    def _may_fit(self, candidate: _Candidate) -> bool:
        """Sort out what is too long for certain, before it is tokenised."""
        if self._template.is_certainly_longer(candidate.prompt, self._max_prompt_tokens):
            self.tally.longest_prompt = max(self.tally.longest_prompt, self._max_prompt_tokens + 1)
            return self._drop("prompt_too_long")
        shown = candidate.demonstration
        if shown is not None and self._template.is_certainly_longer(shown, self._max_response_tokens):
            self.tally.longest_demonstration = max(
                self.tally.longest_demonstration, self._max_response_tokens + 1
            )
            candidate.demonstration, candidate.is_overlong = None, True
        return True

    def _with_demonstrations(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Fill in the demonstrations that fit; of the others, leave out the prompt or only them."""
        having = [candidate for candidate in candidates if candidate.demonstration is not None]
        encoded = self._template.encode_demonstrations([str(candidate.demonstration) for candidate in having])
        for candidate, ids in zip(having, encoded, strict=True):
            candidate.demonstration_ids = ids
            self.tally.longest_demonstration = max(self.tally.longest_demonstration, len(ids))
        return [candidate for candidate in candidates if self._keeps_prompt(candidate)]

    def _keeps_prompt(self, candidate: _Candidate) -> bool:
        problem = self._demonstration_problem(candidate)
        if candidate.is_overlong:
            problem = "demonstration_too_long"
        if problem is None or self._needs.demonstrations == "ignored":
            return True
        if self._needs.demonstrations == "required":
            return self._drop(problem)
        candidate.left_out = problem
        candidate.demonstration = candidate.demonstration_ids = None
        return True

    def _demonstration_problem(self, candidate: _Candidate) -> str | None:
        ids, text = candidate.demonstration_ids, candidate.demonstration
        if ids is None or text is None:
            return "no_demonstration"
        if len(ids) > self._max_response_tokens:
            return "demonstration_too_long"
        if self._template.goes_past_end(ids):
            return "demonstration_past_end"
        if opening_of(candidate.prompt) and "</think>" not in text:
            return "demonstration_thinks_on"
        return None

    def _take_id(self, candidate: _Candidate) -> bool:
        """Give the prompt its id; false for a duplicate. Ids are unique, whatever the files say.

        `<data_source>/<split>/<index>`. Published files count from 0 each, so the same id with
        another prompt is another prompt and gets file and row behind it.
        """
        row = candidate.row
        place = f"{row.path.stem}:{row.number}"
        parts = [row.data_source, place if row.published_id is None else row.published_id]
        prompt_id = "/".join(part for part in parts if part)
        prompt_hash = hashlib.sha256(candidate.prompt.encode()).digest()
        while self._prompt_hashes.get(prompt_id) not in (None, prompt_hash):
            prompt_id += f"@{row.path.parent.name}/{place}"
        if prompt_id in self._prompt_hashes:
            return self._drop("duplicate")
        self._prompt_hashes[prompt_id] = prompt_hash
        candidate.id = prompt_id
        return True

    def _count(self, kept: list[_Candidate]) -> None:
        self.tally.kept += len(kept)
        for candidate in kept:
            length = len(candidate.prompt_ids)
            self.tally.prompt_tokens += length
            self.tally.prompt_tokens_max = max(self.tally.prompt_tokens_max, length)
            if candidate.left_out:
                _count_one(self.tally.demonstrations_left_out, candidate.left_out)
            if candidate.demonstration_ids is not None:
                length = len(candidate.demonstration_ids)
                self.tally.demonstrations += 1
                self.tally.demonstration_tokens += length
                self.tally.demonstration_tokens_max = max(self.tally.demonstration_tokens_max, length)


def _check_text(row: SourceRow, what: str, text: str) -> None:
    """Raises UserError for what JSON can hold and UTF-8, and so every tokenizer, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{row.where}: the {what} has half of a character, \\u{ord(text[error.start]):x}, at position "
            f"{error.start + 1}. Write the whole character, or take it out."
        ) from error


def _count_one(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1


def _to_record_batch(candidates: list[_Candidate]) -> pa.RecordBatch:
    columns = {
        "id": [candidate.id for candidate in candidates],
        "prompt": [candidate.prompt for candidate in candidates],
        "prompt_ids": [candidate.prompt_ids for candidate in candidates],
        "ground_truth": [
            json.dumps(candidate.row.ground_truth, default=_as_json) for candidate in candidates
        ],
        "data_source": [candidate.row.data_source for candidate in candidates],
        "demonstration": [candidate.demonstration for candidate in candidates],
        "demonstration_ids": [candidate.demonstration_ids for candidate in candidates],
        "extra": [json.dumps(candidate.row.extra, default=_as_json) for candidate in candidates],
        "source": [json.dumps(candidate.row.source) for candidate in candidates],
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _as_json(value: Any) -> str:
    """A value that JSON has no form for: dates as ISO texts; bytes by their number, since nobody grades by them."""
    if isinstance(value, date | time):
        return value.isoformat()
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
