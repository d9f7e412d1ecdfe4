"""Files of rows, whatever their kind: parquet, JSON lines, JSON, CSV, Arrow; and the folders that hold them.

In: a path. Out: its rows as dictionaries, numbered from 1 (JSON lines: by line), read a few at a time; only JSON is
loaded whole. Text files may be compressed (`.jsonl.gz`, `.zst`). What the columns mean is for `shapes`. A small file
may unpack to more than there is memory: rows have a largest size, files a largest ratio; both are looked at in time.

A file that cannot be read raises UserError that names it, and the row where there is one.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpt_ray.errors import UserError

Raw = dict[str, Any]  # a row as its file has it
ROWS_PER_READ = 128
SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation"}
SPLITS |= {"val": "validation", "dev": "validation", "eval": "validation"}
MAX_ROW_BYTES = 1 << 30
MAX_JSON_CHARS = 1 << 31
MAX_ROW_VALUES = 10**7  # in one column of parquet
MAX_RATIO = 1000  # of what a file unpacks to and its size; published data comes to 100 at most
COMPRESSED = (".gz", ".zst", ".bz2")
NO_ROWS = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # beside the rows


def list_files(path: str | Path, *, split: str = "train") -> list[Path]:
    """The files of rows behind a path: itself, or those of a folder or of a pattern (`data/*.parquet`), by name.

    A folder may be one that `datasets` saved. Of one with several splits, `split` is meant; UserError where
    there is no such.
    """
    given, path = str(path), Path(path).expanduser()
    if path.is_file():
        if kind_of(path) is None:
            raise UserError(f"{path}: unknown kind of file. Rows come as {', '.join(KINDS)}.")
        return [path]
    if "*" in given and (found := [file for file in map(Path, sorted(glob(str(path)))) if kind_of(file)]):
        return _of_split(path.parent, found, split)
    if not path.is_dir():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        if re.fullmatch(r"[\w-]+/[\w.-]+", given) and not path.suffix:
            hint += f" Of the Hub? Then first: hf download {given} --repo-type dataset --local-dir DIR."
        raise UserError(
            f"{path}: no such file.{hint} Give a file of rows ({', '.join(KINDS)}), or a folder of them."
        )
    if (path / "dataset_dict.json").is_file():
        names = _json_of(path / "dataset_dict.json").get("splits", [])
        return list_files(_choose(path, {name: [path / name] for name in names}, split)[0])
    if (path / "state.json").is_file():
        shards = _json_of(path / "state.json").get("_data_files", [])
        files = [path / shard["filename"] for shard in shards]
    else:
        files = _of_split(path, _files_in(path) or _files_in(path / "data"), split)
    if not files:
        below = sorted(each.name for each in path.iterdir() if each.is_dir() and _files_in(each))
        hint = f"Name one of those in it that do: {', '.join(below)}." if below else "Name another one."
        raise UserError(f"{path}: the folder holds no file of rows ({', '.join(KINDS)}). {hint}")
    return files


def _files_in(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if kind_of(file) and file.name not in NO_ROWS)


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """Without the files that are named after another split, as in gsm8k_train.jsonl and gsm8k_test.jsonl.

    UserError where some are and others after none: those could be of either.
    """
    by_split: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[-_.]", file.name.lower())
        by_split.setdefault(next((SPLITS[word] for word in words if word in SPLITS), ""), []).append(file)
    if by_split.keys() <= {split, ""}:
        return files
    if "" in by_split:
        raise UserError(
            f"{folder}: {by_split.pop('')[0].name} is named after no split, and others are after "
            f"{', '.join(by_split)}. Name the files that are meant, in place of the folder."
        )
    return _choose(folder, by_split, split)


def _choose(folder: Path, by_split: dict[str, list[Path]], split: str) -> list[Path]:
    if len(by_split) == 1:
        return next(iter(by_split.values()))
    if split not in by_split:
        raise UserError(
            f"{folder}: the folder holds the splits {', '.join(by_split)}. Name the one that is meant, "
            f"or its files, in place of the folder."
        )
    return by_split[split]


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({_why_no_json(error)}). Save the data set anew.") from error
    return content if isinstance(content, dict) else {}


# -- kinds of files --------------------------------------------------------------------------------


def kind_of(path: Path) -> str | None:
    """The ending that says how to read the file; None for one that is not known."""
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    binary = path.suffix in COMPRESSED and READERS.get(suffix) in (_read_parquet, _read_arrow)
    return suffix if suffix in READERS and not binary else None


def read_raw(path: Path) -> Iterator[tuple[int, Raw]]:
    """The rows of a file with their numbers, in order. Raises UserError when it comes to what cannot be read."""
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path}: unknown kind of file. Known are {', '.join(KINDS)}.")
    number = 0
    try:
        for number, raw in READERS[kind](path):
            if not isinstance(raw, dict):
                raise UserError(
                    f"{path}, row {number}: should be an object with the row's columns, found {type(raw).__name__}."
                )
            yield number, raw
    except pa.ArrowException as error:
        raise UserError(f"{path}: not readable as {kind[1:]} ({error}). Write it anew.") from error
    except MemoryError as error:
        raise UserError(
            f"{path}, after row {number}: the next rows need more memory than there is."
        ) from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}, after row {number}: cannot be read ({error}).") from error


def _read_parquet(path: Path) -> Iterator[tuple[int, Raw]]:
    # A read buffer instead of whole column chunks: some published files are one single row group.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        rows = _rows_that_fit(path, file.metadata)
        yield from _number(_unpacked(path, file.iter_batches(batch_size=rows, use_threads=False)))


def _rows_that_fit(path: Path, metadata: pq.FileMetaData) -> int:
    """How many rows can be read at a time, by the sizes that the file says of itself.

    Raises `UserError` where single rows are too large.
    """
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        rows = max(group.num_rows, 1)
        num_bytes = sum(column.total_uncompressed_size for column in columns)
        num_values = max((column.num_values for column in columns), default=0)
        if num_bytes > rows * MAX_ROW_BYTES or num_values > rows * MAX_ROW_VALUES:
            raise UserError(
                f"{path}: row group {number} unpacks to {num_bytes:,} bytes and {num_values:,} values in {rows:,} "
                "rows, which are no rows of prompts. Write the file anew."
            )
        # No value is longer than its column, but where many are the same it is stored once.
        largest = max(largest, *(column.total_uncompressed_size for column in columns))
    return max(1, min(ROWS_PER_READ, 2 * MAX_ROW_BYTES // largest))


def _unpacked(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, as long as they do not come to far more than the file has. Raises `UserError`."""
    most = max(MAX_ROW_BYTES, MAX_RATIO * path.stat().st_size)
    total = 0
    for batch in batches:
        total += sum(
            (column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).nbytes
            for column in batch.columns
        )
        if total > most:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes unpack to more than {most:,}, which is no data set. "
                "Write the file anew, without compression if it is meant."
            )
        yield batch


def _read_arrow(path: Path) -> Iterator[tuple[int, Raw]]:
    """Both formats: the stream that `datasets` writes, and the file with its footer (feather)."""
    with pa.memory_map(str(path)) as mapped:
        try:
            file = pa.ipc.open_file(mapped)
        except pa.ArrowInvalid:
            mapped.seek(0)
            yield from _number(pa.ipc.open_stream(mapped))
        else:
            yield from _number(file.get_batch(i) for i in range(file.num_record_batches))


def _number(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Raw]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_PER_READ):
            for raw in batch.slice(start, ROWS_PER_READ).to_pylist():
                number += 1
                yield number, raw


def _open_text(path: Path, newline: str | None = None) -> IO[str]:
    stream = pa.input_stream(str(path), compression="detect")  # by the name's end
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def _lines(path: Path, text: IO[str]) -> Iterator[str]:
    """Its lines. Raises `UserError` for one that is too long to be a row."""
    while line := text.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES:
            raise UserError(
                f"{path}: one line has more than {MAX_ROW_BYTES:,} characters, which is no row of prompts."
            )
        yield line


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with _open_text(path) as text:
        for number, line in enumerate(_lines(path, text), start=1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
            except (ValueError, RecursionError) as error:
                what = _why_no_json(error)
                raise UserError(
                    f"{path}, row {number}: not JSON ({what}). Write one object per line."
                ) from error
            yield number, raw


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """A list of objects, an object that holds one such list, or lines that are objects."""
    with _open_text(path) as file:
        text = file.read(MAX_JSON_CHARS)
    if len(text) == MAX_JSON_CHARS:
        raise UserError(
            f"{path}: has more than {MAX_JSON_CHARS:,} characters. Write one object per line (.jsonl)."
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        is_lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        if is_lines and text.lstrip().startswith("{"):
            yield from _read_jsonl(path)
            return
        raise UserError(f"{path}: not readable as json ({_why_no_json(error)}). Write it anew.") from error
    if isinstance(content, dict):
        lists = [
            rows for rows in content.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
        ]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise UserError(
            f"{path}: should hold a list of objects, one per row, found {type(content).__name__}. Write a list, or "
            "one object per line (.jsonl)."
        )
    yield from enumerate(content, start=1)


def _why_no_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _read_csv(path: Path) -> Iterator[tuple[int, Raw]]:
    """Cells are texts. The separator is the one that the first line has most of: comma, semicolon or tab.

    Blanks before a cell mean nothing, so that `1, "a, b"` has two.
    """
    csv.field_size_limit(
        min(sys.maxsize, 2**31 - 1)
    )  # a demonstration may be longer than the default of 128 KiB
    with _open_text(path, newline="") as text:
        separator = max(",;\t", key=re.sub('"[^"]*"', "", next(_lines(path, text), "")).count)
    with _open_text(path, newline="") as text:
        lines = _lines(path, text)
        rows = csv.DictReader(lines, delimiter=separator, strict=True, skipinitialspace=True)
        names = rows.fieldnames or ()
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(
                f"{path}: the first line has {', '.join(twice)} more than once. Name each column once."
            )
        for number, raw in enumerate(rows, start=1):
            if None in raw or None in raw.values():
                many = "more" if None in raw else "fewer"
                raise UserError(
                    f"{path}, row {number}: {many} cells than the first line has columns. Quote its texts."
                )
            yield number, raw


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
KINDS = tuple(READERS)
