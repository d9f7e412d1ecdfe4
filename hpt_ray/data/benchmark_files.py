r"""Published benchmark files to prompt files: any kind of file that `files` reads in, one parquet file out.

`--source` is a file, a folder, or the Hub name of a data set (OWNER/NAME, needs network). Publishers name
their columns differently; `PROMPT` and `ANSWER` list the names that are understood, whatever their case,
and files in the schema of verl and LUFFY are read too. Multiple-choice questions come as in ARC (`choices`,
`answerKey`) or GPQA (`Correct Answer`, `Incorrect Answer 1` …, in an order drawn from the question's text).

A row that repeats another, question and answer, is left out and counted: some files hold every question 32
times, once per sample. Nothing else is left out; a row that cannot be understood is an error that names it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpt_ray.data.benchmarks import Benchmark
from hpt_ray.data.files import KINDS, kind_of, read_raw
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.errors import UserError

PROMPT = ("prompt", "problem", "question")
ANSWER = ("answer", "final_answer", "expected_answer")
ID = ("id", "unique_id", "problem_id", "record id")
LEVEL = ("level", "difficulty")
LETTERS = "ABCDEFGHIJ"
FIELDS = {"split": pa.string(), "index": pa.int64(), "id": pa.string(), "level": pa.string()}

Record = dict[str, Any]  # a published row, its keys in lower case


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written: the file, its rows, and how many repeated rows were left out."""

    path: Path
    rows: int
    repeated: int


def prepare_benchmark(
    benchmark: Benchmark, source: str, out_dir: Path, *, file: str | None = None, where: str | None = None
) -> Prepared:
    """Write `out_dir`/NAME.parquet. `file` is a pattern that picks the file within a folder or data set;
    `where`, as in `data_source=amc`, takes only the rows with this value in that column.
    """
    path = pick_file(benchmark, source, file)
    condition = _condition(where)
    rows: dict[tuple[str, str], Record] = {}
    repeated = 0
    for number, record in enumerate(read_records(path), start=1):
        if condition is not None and str(record.get(condition[0])) != condition[1]:
            continue
        prompt, answer = _prompt_and_answer(benchmark, record, f"{path}, row {number}")
        repeated += (prompt, answer) in rows
        rows.setdefault((prompt, answer), record)
    if not rows:
        raise UserError(
            f"{path}: no row is left. Check the file" + (f" and --where {where}." if where else ".")
        )
    target = out_dir / f"{benchmark.name}.parquet"
    made = (_row(benchmark, i, q, a, record) for i, ((q, a), record) in enumerate(rows.items()))
    return Prepared(target, write_rows(target, made, FIELDS), repeated)


def _row(benchmark: Benchmark, index: int, prompt: str, answer: str, record: Record) -> dict[str, Any]:
    extra = {"split": "test", "index": index, "id": _text(record, ID), "level": _level(record)}
    return make_row(prompt, None, answer, data_source=benchmark.name, extra_info=extra)


def _condition(where: str | None) -> tuple[str, str] | None:
    if where is None:
        return None
    column, equals, value = where.partition("=")
    if not equals:
        raise UserError(f"--where {where}: write it as COLUMN=VALUE, e.g. data_source=amc.")
    return column.lower(), value


# -- the file --------------------------------------------------------------------------------------


def pick_file(benchmark: Benchmark, source: str, pattern: str | None) -> Path:
    """The one file that holds the benchmark's prompts. Raises UserError where that is not clear."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        path = _download(source)
    files = sorted(p for p in path.rglob("*") if kind_of(p) and p.is_file())
    for glob in [pattern] if pattern else [*benchmark.globs, "*test*", "*"]:
        found = [f for f in files if fnmatch(str(f.relative_to(path)).lower(), glob.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(f.relative_to(path)) for f in found[:10])
            raise UserError(f"{source}: several files could hold {benchmark.name}: {names}. Add --file NAME.")
    raise UserError(f"{source}: no file ({', '.join(KINDS)}) that could hold {benchmark.name}.")


def _download(name: str) -> Path:
    """A data set of the Hub as a folder in its cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--source {name}: no such file or folder, and no Hub name (OWNER/NAME) either.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"--source {name}: no such file. For data sets of the Hub, `pip install huggingface_hub`."
        ) from error
    try:
        patterns = [f"*{suffix}" for suffix in KINDS]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (
        OSError,
        ValueError,
    ) as error:  # what the Hub's client raises: no network, no such name, no access
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--source {name}: no such file or folder, and the Hub does not give a data set of this name "
            f"({reason}). Download it where there is network, and name the file."
        ) from error


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a published file, with keys in lower case."""
    return ({key.lower(): value for key, value in row.items()} for _, row in read_raw(path))


# -- the prompt ------------------------------------------------------------------------------------


def _prompt_and_answer(benchmark: Benchmark, record: Record, where: str) -> tuple[str, str]:
    """The user's message and the reference."""
    if benchmark.reward_function == "choice" and (choices := _choices(record, where)) is not None:
        texts, label = choices
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
        return benchmark.prompt.format(prompt=_need(record, PROMPT, where), choices=listed), label
    prompt = record.get("prompt")
    prompt = _last_user_message(prompt, where) if isinstance(prompt, list) else _need(record, PROMPT, where)
    if isinstance(record.get("reward_model"), Mapping):
        answer = _need(record["reward_model"], ("ground_truth",), where)
    else:
        answer = _need(record, ANSWER, where)
    # Choices that stand in the question already come with their own instruction.
    return prompt if benchmark.reward_function == "choice" else benchmark.prompt.format(prompt=prompt), answer


def _choices(record: Record, where: str) -> tuple[list[str], str] | None:
    """The texts of the choices and the letter of the right one; None where the row has no such columns."""
    if "choices" in record:
        choices, key = record["choices"], str(record.get("answerkey", ""))
        if not isinstance(choices, Mapping) or key not in choices.get("label", []):
            raise UserError(f"{where}: `answerKey` {key!r} is none of the labels of `choices`.")
        return list(choices["text"]), LETTERS[list(choices["label"]).index(key)]
    if "correct answer" in record:
        right = _need(record, ("correct answer",), where)
        texts = [right, *(_need(record, (f"incorrect answer {i}",), where) for i in (1, 2, 3))]
        prompt = _need(record, PROMPT, where)
        order = list(range(len(texts)))
        random.Random(hashlib.sha256(prompt.encode()).digest()).shuffle(order)
        return [texts[i] for i in order], LETTERS[order.index(0)]
    return None


def _last_user_message(messages: list, where: str) -> str:
    texts = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    if not texts or not isinstance(texts[-1], str):
        raise UserError(f"{where}: `prompt` holds no user message.")
    return texts[-1]


def _need(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    text = _text(record, names)
    if text is None:
        raise UserError(f"{where}: none of {', '.join(names)} holds a text; found {', '.join(record)}.")
    return text


def _text(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these columns that is filled, as text; a list of several answers joined by commas."""
    for name in names:
        value = record.get(name)
        if isinstance(value, list):
            value = ", ".join(str(part) for part in value)
        if value is not None and str(value).strip():
            return str(value).strip()
    return None


def _level(record: Record) -> str | None:
    """`Level 5`, `5` and 5 are the level 5."""
    level = _text(record, LEVEL)
    return None if level is None else re.sub(r"(?i)^level\s*", "", level)
