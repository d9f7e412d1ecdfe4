"""Turn published files into prompt files: `python -m hpt_ray.data.prepare NAME --source … --out DIR`.

`PREPARERS` has one row per data set to train on: a new one is a function that writes files in the schema of `schema`
and returns what it wrote. `responses` makes its rows of the responses of an evaluation. Benchmarks are rows of
`evaluation.benchmarks` and are read by `benchmark_files`. No row is left out: a line that cannot be understood is an
error that names it.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from hpt_ray.data.benchmark_files import prepare_benchmark
from hpt_ray.data.benchmarks import BENCHMARKS
from hpt_ray.data.files import kind_of, read_raw
from hpt_ray.data.mini import write_mini
from hpt_ray.data.responses import prepare_responses
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.errors import UserError
from hpt_ray.text import printable

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


MATH_LEVELS, OF_A_LEVEL = (3, 4, 5), 85


def prepare_math255(source: Path, out_dir: Path) -> Counts:
    """MATH: a file, or a folder with its training files, of `problem`, `level` and `solution` → `math255.parquet`.

    255 problems, 85 of each of levels 3, 4 and 5 (paper, Section 4.2, which does not say which: here they are drawn by
    seed 0). The demonstration is the solution, in whose box the answer stands; the level is in the data source.
    """
    files = sorted(path for path in source.rglob("*") if kind_of(path)) if source.is_dir() else [source]
    training = [path for path in files if "train" in str(path.relative_to(source)).lower()]
    problems: dict[int, list[dict[str, Any]]] = {level: [] for level in MATH_LEVELS}
    for path in training or files:
        for record in _read_records(path, ("problem", "level", "solution")):
            of_level = record["level"].rpartition(" ")[2]
            if of_level.isdigit() and int(of_level) in problems:
                problems[int(of_level)].append(record)
    for level, found in problems.items():
        if len(found) < OF_A_LEVEL:
            raise UserError(
                f"{source}: {len(found)} problems of level {level} are too few, {OF_A_LEVEL} are needed."
            )
    drawn = (
        make_row(
            record["problem"],
            record["solution"],
            record.get("answer", record["solution"]),
            data_source=f"MATH/level {level}",
            extra_info={"split": "train", "index": index, "level": str(level)},
        )
        for level, found in problems.items()
        for index, record in enumerate(random.Random(0).sample(found, OF_A_LEVEL))
    )
    fields = {"split": pa.string(), "index": pa.int64(), "level": pa.string()}
    return {"math255": write_rows(out_dir / "math255.parquet", drawn, fields)}


def _read_records(path: Path, keys: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The objects of a file, each with a text under each of `keys`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. --source is the folder that holds {path.name}.")
    for number, record in read_raw(path):
        for key in keys:
            if not isinstance(record.get(key), str):
                raise UserError(f"{path}, row {number}: should be an object with a text `{key}`.")
        yield record


@dataclass(frozen=True, slots=True)
class Preparer:
    """One data set: what it needs, what it writes."""

    description: str
    write: Callable[[Path, Path], Counts]
    needs_source: bool = True


PREPARERS: dict[str, Preparer] = {
    "gsm8k": Preparer("grade-school word problems with solutions (train.jsonl, test.jsonl)", prepare_gsm8k),
    "math255": Preparer("255 problems of MATH for the paper's Figures 3 and 4", prepare_math255),
    "responses": Preparer(
        "the responses of an evaluation with keep_texts=true, to train on", prepare_responses
    ),
    "mini": Preparer("the generated small task", lambda _, out_dir: write_mini(out_dir), needs_source=False),
}


# Benchmarks whose prompts come from one published file; the others are written by PREPARERS.
SINGLE_FILES = {
    name: row
    for name, row in BENCHMARKS.items()
    if name not in PREPARERS and not row.path.startswith("mini:")
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 when the user must change something."""
    described = {name: preparer.description for name, preparer in PREPARERS.items()}
    described |= {name: f"benchmark {row.title}" for name, row in SINGLE_FILES.items()}
    parser = argparse.ArgumentParser(
        prog="hpt_ray prepare",
        description="Write prompt files from published ones, or from the responses of a model.\n\n"
        + "\n".join(f"  {name:12} {description}" for name, description in described.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=described, metavar="NAME", help="one of the names above")
    help = (
        "the published file, a folder with it, a Hub name (benchmarks), or an evaluation's folder (responses)"
    )
    parser.add_argument("--source", help=help)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--file", help="benchmarks: pattern of the file within a folder or a Hub data set")
    parser.add_argument("--where", metavar="COLUMN=VALUE", help="benchmarks: take only these rows")
    options = parser.parse_args(arguments)
    try:
        counts = _prepare(options)
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    table = Table(title=f"{options.name} → {options.out}")
    table.add_column("written")
    table.add_column("rows", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Console().print(table)
    return 0


def _prepare(options: argparse.Namespace) -> Counts:
    name, source, out_dir = options.name, options.source, options.out
    if source is None and (name in SINGLE_FILES or PREPARERS[name].needs_source):
        raise UserError(f"{name} needs --source, the file or the folder that it is made from.")
    try:
        if name in SINGLE_FILES:
            return _prepare_benchmark(options)
        if options.file or options.where:
            raise UserError(f"{name} is no single file: --file and --where do not go with it.")
        return PREPARERS[name].write(Path(source or ""), out_dir)
    except OSError as error:
        raise UserError(f"Cannot write to {out_dir}: {error}.") from error


def _prepare_benchmark(options: argparse.Namespace) -> Counts:
    """The rows written, under a label that says which published version this is."""
    row = SINGLE_FILES[options.name]
    done = prepare_benchmark(row, options.source, options.out, file=options.file, where=options.where)
    known = ", ".join(f"{size} ({what})" for size, what in row.published.items())
    version = row.published.get(done.rows, f"no published version with this many; known: {known}")
    counts = {f"{done.path.name}: {version}": done.rows}
    return counts | ({"repeated rows left out": done.repeated} if done.repeated else {})


if __name__ == "__main__":
    sys.exit(main())
