"""Turn published files into question files: `python -m hpt_ray.data.prepare NAME --source DIR --out DIR`.

`PREPARERS` has one row per data set: a new one is a function that writes parquet files in the schema
of `schema` and returns what it wrote. Nothing is downloaded and no row is left out: a line that
cannot be understood is an error that names it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from hpt_ray.data.mini import write_mini
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.errors import UserError

Counts = dict[str, int]  # rows by name of what was written


def prepare_gsm8k(source: Path, out_dir: Path) -> Counts:
    """GSM8K: `train.jsonl` and `test.jsonl` of `question`, `answer` → `train.parquet`, `test.parquet`.

    The demonstration is the worked solution with two changes: the calculator annotations `<<48/2=24>>`
    go, and the last line `#### 72` becomes `The answer is \\boxed{72}.`. The ground truth is that
    number without thousands separators. `extra_info.answer` keeps the solution as published.
    """
    fields = {"split": pa.string(), "index": pa.int64(), "answer": pa.string()}
    return {
        split: write_rows(out_dir / f"{split}.parquet", _gsm8k_rows(source / f"{split}.jsonl", split), fields)
        for split in ("train", "test")
    }


def _gsm8k_rows(path: Path, split: str) -> Iterator[dict[str, Any]]:
    for index, record in enumerate(_read_records(path, ("question", "answer"))):
        solution, ground_truth = _gsm8k_solution(record["answer"], f"{path}, row {index + 1}")
        yield make_row(
            record["question"],
            solution,
            ground_truth,
            data_source="openai/gsm8k",
            extra_info={"split": split, "index": index, "answer": record["answer"]},
        )


def _gsm8k_solution(answer: str, where: str) -> tuple[str, str]:
    worked, mark, last_line = answer.rpartition("\n#### ")
    number = last_line.strip().replace(",", "")
    if not mark or not re.fullmatch(r"-?\d+(\.\d+)?", number):
        raise UserError(f"{where}: `answer` should end in a line `#### NUMBER`, found {answer[-40:]!r}.")
    worked = re.sub(r"<<[^<>]*>>", "", worked).strip()
    return f"{worked}\nThe answer is \\boxed{{{number}}}.", number


def _read_records(path: Path, keys: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The objects of a JSON lines file, each with a text under each of `keys`."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                record = json.loads(line)
                for key in keys:
                    if not isinstance(record, dict) or not isinstance(record.get(key), str):
                        raise UserError(f"{path}, row {number}: should be an object with a text `{key}`.")
                yield record
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file. --source is the folder that holds {path.name}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, row {number}: not JSON ({error}).") from error


@dataclass(frozen=True, slots=True)
class Preparer:
    """One data set: what it needs, what it writes."""

    description: str
    write: Callable[[Path, Path], Counts]
    needs_source: bool = True


PREPARERS: dict[str, Preparer] = {
    "gsm8k": Preparer("grade-school word problems with solutions (train.jsonl, test.jsonl)", prepare_gsm8k),
    "mini": Preparer("the generated small task", lambda _, out_dir: write_mini(out_dir), needs_source=False),
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 when the user must change something."""
    names = "\n".join(f"  {name:8} {preparer.description}" for name, preparer in PREPARERS.items())
    parser = argparse.ArgumentParser(
        prog="python -m hpt_ray.data.prepare",
        description=f"Write question files (parquet) from published ones.\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=PREPARERS, metavar="NAME", help="one of the names above")
    parser.add_argument("--source", type=Path, help="folder of the published files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    try:
        counts = _prepare(options.name, options.source, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    table = Table(title=f"{options.name} → {options.out}")
    table.add_column("written")
    table.add_column("rows", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Console().print(table)
    return 0


def _prepare(name: str, source: Path | None, out_dir: Path) -> Counts:
    preparer = PREPARERS[name]
    if preparer.needs_source and source is None:
        raise UserError(f"{name} needs --source, the folder of its published files.")
    try:
        return preparer.write(source or Path(), out_dir)
    except OSError as error:
        raise UserError(f"Cannot write to {out_dir}: {error}.") from error


if __name__ == "__main__":
    sys.exit(main())
