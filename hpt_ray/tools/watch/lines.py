"""A file of JSON lines that grows, as a table: each byte is read once, as long as the file only grows.

In: a path. Out: an Arrow table of the whole lines so far. A run also replaces its files, when it adds to the last
line and when it goes back to an earlier step; then the bytes before our place are others, and we begin anew.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.json

BLOCK_BYTES = 1 << 24  # no line may be longer
NUM_TAIL_BYTES = 256  # that tell whether the file is the one that was read
MOST_CHUNKS = 64
Names = Callable[[Iterable[str]], list[str]]


class JsonLines:
    """`table()` reads what is new. Several threads may ask. `names`: old names of columns → today's."""

    def __init__(self, path: Path, names: Names = list):
        self._path, self._names, self._lock = path, names, Lock()
        self.num_begun = 0  # how often from the beginning
        self._forget()

    def _forget(self) -> None:
        self.num_begun += 1
        self._end, self._tail, self._table = 0, b"", pa.table({})
        self.num_unreadable = 0  # whole lines that are no JSON

    def table(self) -> pa.Table:
        """All whole lines so far; a last one that is still being written comes next time."""
        with self._lock:
            try:
                self._read_on()
            except FileNotFoundError:
                self._forget()
            return self._table

    def _read_on(self) -> None:
        with self._path.open("rb") as file:
            file.seek(max(0, self._end - NUM_TAIL_BYTES))
            if file.read(len(self._tail)) != self._tail:
                self._forget()
            file.seek(self._end)
            block = file.read()
        block = block[: block.rfind(b"\n") + 1]
        if not block:
            return
        self._end += len(block)
        self._tail = (self._tail + block)[-NUM_TAIL_BYTES:]
        new = self._parse(block)
        new = new.rename_columns(self._names(new.column_names))
        both = pa.concat_tables([self._table, new], promote_options="permissive") if len(self._table) else new
        many = both.num_columns and both.column(0).num_chunks > MOST_CHUNKS
        self._table = both.combine_chunks() if many else both

    def _parse(self, block: bytes) -> pa.Table:
        try:
            options = pa.json.ReadOptions(block_size=BLOCK_BYTES)
            return pa.json.read_json(io.BytesIO(block), options)
        except pa.ArrowInvalid:
            lines = block.splitlines(keepends=True)
            if len(lines) == 1:
                self.num_unreadable += 1
                return pa.table({})
            half = len(lines) // 2
            parts = [self._parse(b"".join(part)) for part in (lines[:half], lines[half:])]
            return pa.concat_tables(
                [part for part in parts if len(part)] or parts, promote_options="permissive"
            )


def last_line(path: Path) -> bytes:
    """The last whole line of a file, without reading what is before it; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - (1 << 16)))
            return next(reversed(file.read().split(b"\n")[:-1]), b"")
    except FileNotFoundError:
        return b""
