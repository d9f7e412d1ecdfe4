"""The columns of a prompt file, as LUFFY and verl publish them, and how to write one.

    prompt        list of chat messages {role, content}
    target        list with one assistant message: the demonstration; null where there is none
    reward_model  {style, ground_truth}
    data_source   chooses the reward function; may be empty
    ability       a word for people, e.g. "math"
    extra_info    {split, index, …}: index is unique within data source and split

`sources` reads these files (and a little more than is written here: see there).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 1000  # of files written here: large enough to compress, small enough to hold

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def make_row(
    prompt: str,
    demonstration: str | None,
    ground_truth: str,
    *,
    data_source: str,
    extra_info: dict[str, Any],
) -> dict[str, Any]:
    """One row of a prompt file, with the prompt as the only user message."""
    target = None if demonstration is None else [{"role": "assistant", "content": demonstration}]
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": prompt}],
        "target": target,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": extra_info,
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any]], extra_fields: dict[str, pa.DataType]) -> int:
    """Write rows of `make_row` to a parquet file, one row group at a time; returns how many.

    `extra_fields` are the names and types inside `extra_info`. The file appears complete or not at
    all; its bytes depend on the rows and on the version of pyarrow only.
    """
    schema = pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", _MESSAGES),
            ("target", _MESSAGES),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct(list(extra_fields.items()))),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")  # a bad row may come half-way
    num_rows = 0
    remaining = iter(rows)
    try:
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            while group := list(islice(remaining, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                num_rows += len(group)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return num_rows
