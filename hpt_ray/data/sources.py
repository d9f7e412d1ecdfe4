"""Rows of prompt files: parquet and JSON lines in the schema of `schema.py`.

`read_rows(path)` yields `SourceRow`s in file order with only a small batch of rows in memory,
whatever the size of the file or of its row groups. Accepted beyond what `schema.py` writes: `prompt`
and `target` as plain strings, `ground_truth` as a number or a list, any fields in `extra_info`, and a
file without `target`, `ability` or `extra_info`.

A file that is not what it should be raises UserError with file, row, column, what was found and what
to do. Rows are counted from 1. Whether a row is of use (length, empty texts) is for `prompts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpt_ray.data.template import Message
from hpt_ray.errors import UserError

ROWS_PER_READ = 128
REQUIRED = ("prompt", "reward_model", "data_source")
OPTIONAL = ("target", "ability", "extra_info")
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as found, checked for its types."""

    path: Path
    number: int  # from 1; the line number in JSON lines
    messages: list[Message]
    demonstration: str | None
    ground_truth: str | float | list | None
    data_source: str
    extra: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}, row {self.number}"


def list_files(path: str | Path) -> list[Path]:
    """The prompt files behind a path: itself, or the parquet and JSON lines files of a folder, by name."""
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix not in (".parquet", ".jsonl"):
            raise UserError(f"{path}: unknown kind of file. Prompts come as .parquet or .jsonl.")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file. Give a .parquet or .jsonl file, or a folder of them.")
    files = sorted(file for file in path.iterdir() if file.suffix in (".parquet", ".jsonl"))
    if not files:
        raise UserError(f"{path}: the folder holds no .parquet or .jsonl file. Name another one.")
    return files


def read_rows(path: Path) -> Iterator[SourceRow]:
    """All rows of one file, in order. Raises UserError (see above) when it comes to the bad one."""
    raw_rows = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
    for number, raw in raw_rows:
        yield _check_row(path, number, raw)


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        # A read buffer instead of whole column chunks: some published files are one single row group.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            for name in REQUIRED:
                if name not in names:
                    raise _missing_column(str(path), name, names)
            columns = [name for name in (*REQUIRED, *OPTIONAL) if name in names]
            number = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_READ, columns=columns, use_threads=False):
                for raw in batch.to_pylist():
                    number += 1
                    yield number, raw
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable as parquet ({error}). Write it anew.") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}, row {number}"
                raw = json.loads(line)
                if not isinstance(raw, dict):
                    raise _wrong(where, "the row", raw, "a JSON object")
                for name in REQUIRED:
                    if name not in raw:
                        raise _missing_column(where, name, list(raw))
                yield number, raw
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, row {number}: not JSON ({error}). Write one object per line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}, after row {number}: cannot be read ({error}).") from error


def _missing_column(where: str, name: str, found: list[str]) -> UserError:
    return UserError(
        f"{where}: `{name}` is missing; found {', '.join(found) or 'nothing'}. Prompt files need "
        f"{', '.join(REQUIRED)}. Rename the column, or write the file anew."
    )


def _wrong(where: str, column: str, found: Any, wanted: str) -> UserError:
    text = repr(found)
    text = text if len(text) <= 60 else text[:60] + "…"
    return UserError(
        f"{where}: `{column}` should be {wanted}, found {type(found).__name__} {text}. "
        "Correct this row, or the program that wrote it."
    )


def _check_row(path: Path, number: int, raw: dict[str, Any]) -> SourceRow:
    where = f"{path}, row {number}"
    if not isinstance(raw["data_source"], str):
        raise _wrong(where, "data_source", raw["data_source"], "a text (it may be empty)")
    extra = raw.get("extra_info") or {}
    if not isinstance(extra, dict):
        raise _wrong(where, "extra_info", extra, "an object")
    if raw.get("ability") is not None:
        extra = {"ability": raw["ability"], **extra}
    return SourceRow(
        path,
        number,
        _check_prompt(where, raw["prompt"]),
        _check_target(where, raw.get("target")),
        _check_ground_truth(where, raw["reward_model"]),
        raw["data_source"],
        extra,
    )


def _check_prompt(where: str, prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = _check_messages(where, "prompt", prompt)
    if messages and messages[-1]["role"] != "user":
        raise _wrong(where, "prompt", messages[-1]["role"], "a conversation that ends with a user message")
    return messages


def _check_target(where: str, target: Any) -> str | None:
    if target is None or isinstance(target, str):
        return target
    messages = _check_messages(where, "target", target)
    if [message["role"] for message in messages] not in ([], ["assistant"]):
        raise _wrong(where, "target", target, "one single message of the assistant")
    return messages[0]["content"] if messages else None


def _check_messages(where: str, column: str, messages: Any) -> list[Message]:
    if not isinstance(messages, list):
        raise _wrong(where, column, messages, "a text or a list of messages {role, content}")
    checked = []
    for message in messages:
        if not isinstance(message, dict):
            raise _wrong(where, column, message, "a list of messages {role, content}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise _wrong(where, f"{column}.role", role, f"one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise _wrong(where, f"{column}.content", content, "a text")
        checked.append({"role": role, "content": content})
    return checked


def _check_ground_truth(where: str, reward_model: Any) -> str | float | list | None:
    if not isinstance(reward_model, dict):
        raise _wrong(where, "reward_model", reward_model, "an object with `ground_truth`")
    if "ground_truth" not in reward_model:
        raise _missing_column(where, "reward_model.ground_truth", list(reward_model))
    ground_truth = reward_model["ground_truth"]
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, str | int | float | list | None):
        raise _wrong(where, "reward_model.ground_truth", ground_truth, "a text, a number or a list")
    return ground_truth
