"""Search among the rollouts of a run, page by page, and one prompt with all its responses.

In: the dumps of a run, a file a step (`observe/rollout_dump.py`); `kind` is `step` for what was trained on, `eval` for
the evaluations. No index is built and nothing is kept: files are read from the newest back, only the columns that are
asked for, until a page is full or its time is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from hpt_ray.observe.rollout_dump import SCHEMA, dump_of, read_columns
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.types import FinishReason, Outcome

PAGE_ROWS, PAGE_S = 50, 0.5  # whichever comes first
PREVIEW_CHARS = 240
SHOWN = ["group", "prompt_id", "data_source", "request_id", "sample", "score", "outcome", "finish"]
SHOWN += ["extracted", "branch", "num_correct", "num_rollouts"]
OF_GROUP = [
    "prompt_id",
    "request_id",
    "data_source",
    "prompt",
    "reference",
    "demonstration",
    "branch",
    "reason",
]
OF_GROUP += ["num_correct", "num_rollouts", "rollout_weight", "demo_weight"]
OF_RESPONSE = [
    "sample",
    "text",
    "finish",
    "score",
    "outcome",
    "extracted",
    "detail",
    "weight_version",
    "tokens",
]
OF_RESPONSE += ["advantage", "prefix_length"]
WITHOUT_LOGPROBS = [name for name in SCHEMA.names if name != "logprobs"]
KEYS = {"step": "prompt_id", "eval": "request_id"}  # what a prompt is known by: eval sets may share ids


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a rollout must be; None is anything."""

    kind: str = "step"
    prompt: str | None = None  # in the prompt's id
    set: str | None = None  # the data source; of an evaluation, the eval set
    outcome: str | None = None
    branch: str | None = None
    finish: str | None = None
    text: str | None = None  # in prompt or response, in any case
    min_score: float | None = None
    max_score: float | None = None
    min_advantage: float | None = None
    max_advantage: float | None = None
    min_tokens: float | None = None
    max_tokens: float | None = None
    min_step: float | None = None
    max_step: float | None = None

    @classmethod
    def of(cls, asked: Mapping[str, str]) -> Wanted:
        """From words; empty ones are anything. Raises `ValueError` for a number that is none."""
        found: dict[str, Any] = {}
        for field in fields(cls):
            if text := asked.get(field.name):
                found[field.name] = float(text) if field.name.startswith(("min_", "max_")) else text
        return cls(**found | {"kind": kind_of(asked)})

    def mask(self, path: Path, num_rows: int) -> pa.Array:
        """Which rows of a file are wanted."""
        parts = list(self._parts(path))
        mask = parts[0] if parts else pa.chunked_array([pa.repeat(True, num_rows)])
        for part in parts[1:]:
            mask = pc.and_(mask, part)
        return pc.fill_null(mask, False)

    def _parts(self, path: Path) -> Iterator[pa.ChunkedArray]:
        if self.set is not None and self.kind == "eval":
            yield pc.starts_with(_column(path, "request_id"), f"{self.set}#")
        same = {
            "data_source": self.set if self.kind == "step" else None,
            "outcome": self.outcome,
            "branch": self.branch,
            "finish": self.finish,
        }
        for name, value in same.items():
            if value is not None:
                yield pc.equal(_column(path, name), value)
        if self.prompt is not None:
            yield pc.match_substring(_column(path, KEYS[self.kind]), self.prompt)
        if self.text is not None:
            found = [
                pc.match_substring(_column(path, n), self.text, ignore_case=True) for n in ("prompt", "text")
            ]
            yield pc.or_kleene(*found)
        for low, high, name in (
            (self.min_score, self.max_score, "score"),
            (self.min_advantage, self.max_advantage, "advantage"),
            (self.min_tokens, self.max_tokens, "token_ids"),
        ):
            if low is None and high is None:
                continue
            values = _column(path, name)
            values = pc.list_value_length(values) if name == "token_ids" else values
            if low is not None:
                yield pc.greater_equal(values, low)
            if high is not None:
                yield pc.less_equal(values, high)


def kind_of(asked: Mapping[str, str]) -> str:
    """Raises `ValueError` for one that there is not."""
    if (kind := asked.get("kind") or "step") not in KEYS:
        raise ValueError(f"kind={kind}: use one of {', '.join(KEYS)}")
    return kind


def dumped_steps(folder: RunFolder, kind: str = "step") -> list[int]:
    """The steps whose rollouts are in the folder, the newest first."""
    names = (path.stem.partition("-")[2] for path in folder.rollouts.glob(f"{kind}-*.parquet"))
    return sorted(map(int, names), reverse=True)


def search(folder: RunFolder, wanted: Wanted, after: tuple[int, int] | None = None) -> dict[str, Any]:
    """One page of rollouts, newest step first, from behind row `after` (step, row).

    `next` is where the next page begins, None at the end; `searched` how many of `steps` files were looked at so far.
    A page may be short, even empty, where its time was over first.
    """
    steps = [
        step
        for step in dumped_steps(folder, wanted.kind)
        if (wanted.min_step is None or step >= wanted.min_step)
        and (wanted.max_step is None or step <= wanted.max_step)
    ]
    found: list[dict[str, Any]] = []
    until = None  # the first file is always looked at
    for number, step in enumerate(steps):
        if after is not None and step > after[0]:
            continue
        from_row = after[1] + 1 if after is not None and step == after[0] else 0
        if until is not None and time.monotonic() > until:
            return {"rollouts": found, "next": [step, from_row - 1], "searched": number, "steps": len(steps)}
        until = until or time.monotonic() + PAGE_S
        try:
            rows = _rows(
                dump_of(folder.rollouts, step, wanted.kind), wanted, from_row, PAGE_ROWS - len(found)
            )
        except FileNotFoundError:  # the run went back to an earlier step
            continue
        found += [{"step": step, **row} for row in rows]
        if len(found) == PAGE_ROWS:
            return {
                "rollouts": found,
                "next": [step, found[-1]["row"]],
                "searched": number + 1,
                "steps": len(steps),
            }
    return {"rollouts": found, "next": None, "searched": len(steps), "steps": len(steps)}


def _rows(path: Path, wanted: Wanted, from_row: int, most: int) -> list[dict[str, Any]]:
    mask = wanted.mask(path, pa.parquet.read_metadata(path).num_rows)
    rows = [row for row in pc.indices_nonzero(mask).to_pylist() if row >= from_row][:most]
    if not rows:
        return []
    table = read_columns(path, [*SHOWN, "text", "token_ids"]).take(rows)
    preview = pc.utf8_slice_codeunits(table["text"], 0, PREVIEW_CHARS)
    lengths = pc.list_value_length(table["token_ids"])
    table = (
        table.drop_columns(["text", "token_ids"])
        .append_column("text", preview)
        .append_column("tokens", lengths)
    )
    return [{**line, "row": row} for row, line in zip(rows, table.to_pylist(), strict=True)]


def group(folder: RunFolder, step: int, number: int, kind: str = "step") -> dict[str, Any]:
    """The prompt that was trained on as the `number`-th of a step: its decision and its responses, whole.

    `trains`: whether the tokens of a response are in the loss. Raises `KeyError` where the step was not dumped or
    has fewer prompts.
    """
    path = _dump(folder, step, kind)
    mask = pc.equal(_column(path, "group"), number)
    rows = pc.indices_nonzero(mask).to_pylist()
    if not rows:
        raise KeyError(f"prompt {number} in step {step}")
    lines = _lines(read_columns(path, WITHOUT_LOGPROBS).take(rows))
    return _group(step, number, list(zip(rows, lines, strict=True)))


def groups(folder: RunFolder, step: int, kind: str, most_chars: int) -> tuple[list[dict[str, Any]], int]:
    """The first groups of a step, as `group` has them, whose texts are no longer together; and how many there are."""
    table = read_columns(dump_of(folder.rollouts, step, kind), WITHOUT_LOGPROBS)
    chars = pc.cumulative_sum(pc.fill_null(pc.utf8_length(table["text"]), 0).cast(pa.int64())).to_numpy()
    size = len(pc.unique(table["group"]))
    table = table.slice(0, int((chars <= most_chars).sum()) + 1)
    by_number: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for row, line in enumerate(_lines(table)):
        by_number.setdefault(line["group"], []).append((row, line))
    if len(by_number) > 1 and len(table) < len(chars):  # the last one may be cut
        by_number.popitem()
    return [_group(step, number, lines) for number, lines in by_number.items()], size


def _lines(table: pa.Table) -> list[dict[str, Any]]:
    """With the number of `tokens` in place of their ids; None for what an older file lacks."""
    lengths = pc.list_value_length(table["token_ids"])
    lines = table.drop_columns(["token_ids"]).append_column("tokens", lengths).to_pylist()
    return [dict.fromkeys(SCHEMA.names) | line for line in lines]


def _group(step: int, number: int, lines: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    return {
        "step": step,
        "group": number,
        **{name: lines[0][1].get(name) for name in OF_GROUP},
        "responses": [
            {"row": row, "trains": _trains(line), **{name: line.get(name) for name in OF_RESPONSE}}
            for row, line in lines
            if line["sample"] is not None
        ],
    }


def _trains(line: Mapping[str, Any]) -> bool:
    """As `can_train` has it."""
    is_graded = FinishReason(line["finish"]).is_response and not Outcome(line["outcome"]).is_failure
    has_own = line["tokens"] > (line["prefix_length"] or 0) and not line["superseded"]
    return bool(line.get("rollout_weight") and is_graded and has_own)


def _dump(folder: RunFolder, step: int, kind: str) -> Path:
    path = dump_of(folder.rollouts, step, kind)
    if not path.is_file():
        raise KeyError(f"dump of step {step}: see `observe.rollouts_every`")
    return path


def find_group(folder: RunFolder, step: int, prompt_id: str, kind: str = "step") -> int:
    """Which of a step's groups is the prompt's. Raises `KeyError` where there is none."""
    path = _dump(folder, step, kind)
    found = pc.index(_column(path, KEYS[kind]), prompt_id).as_py()
    if found < 0:
        raise KeyError(f"prompt {prompt_id} in step {step}")
    return _column(path, "group")[found].as_py()


def choices(folder: RunFolder, kind: str = "step") -> dict[str, list[Any]]:
    """What may be asked for by name; the sets are those of the newest step. `evaluated`: the steps that were."""
    sets: list[str | None] = []
    if steps := dumped_steps(folder, kind):
        column = "data_source" if kind == "step" else "request_id"
        found = _column(dump_of(folder.rollouts, steps[0], kind), column).unique().to_pylist()
        sets = found if kind == "step" else [name and name.rpartition("#")[0] for name in found]
    return {
        "set": sorted({name for name in sets if name}),
        "evaluated": dumped_steps(folder, "eval"),
        "outcome": list(map(str, Outcome)),
        "branch": ["rollouts", "demonstration", "both", "nothing"],
        "finish": list(map(str, FinishReason)),
    }


def tokens(
    folder: RunFolder, step: int, row: int, tokenizer_files: Iterator[Path], kind: str = "step"
) -> dict[str, Any]:
    """The tokens of one response as texts, with the log-prob that each was sampled with; None in a prefix.

    Without a tokenizer on this machine the texts are the tokens' numbers, and `decoded` is false.
    """
    path = _dump(folder, step, kind)
    table = read_columns(path, ["token_ids", "logprobs"])
    if not 0 <= row < len(table):
        raise KeyError(f"row {row} in step {step}")
    ids, logprobs = (table[name][row].as_py() or [] for name in ("token_ids", "logprobs"))
    file = next((file for file in tokenizer_files if file.is_file()), None)
    texts = pieces(ids, file) if file else [f"[{i}]" for i in ids]
    known = [None if math.isnan(value) else round(value, 4) for value in logprobs]
    return {"texts": texts, "logprobs": known, "decoded": file is not None}


def pieces(ids: list[int], tokenizer_file: Path) -> list[str]:
    """The text that each token adds; the bytes of a character stand at the last of its tokens."""
    from tokenizers import Tokenizer  # only here: slow to import

    decode = Tokenizer.from_file(str(tokenizer_file)).decode
    found: list[str] = []
    begin = 0  # of the tokens that were not shown yet
    for end in range(1, len(ids) + 1):
        # What a token looks like may hang on the one before it, such as a blank between words.
        context = ids[max(0, begin - 1) : begin]
        text = decode(context + ids[begin:end], skip_special_tokens=False)
        text = text.removeprefix(decode(context, skip_special_tokens=False)) if context else text
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids) and end - begin < 4:
            found.append("")
            continue
        found.append(text)
        begin = end
    return found


def _column(path: Path, name: str) -> pa.ChunkedArray:
    """One column; all null where an older file lacks it."""
    table = read_columns(path, [name])
    if name in table.column_names:
        return table[name]
    field = SCHEMA.field(name)
    return pa.chunked_array([pa.nulls(pa.parquet.read_metadata(path).num_rows, field.type)])
