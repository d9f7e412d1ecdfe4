"""A file that grows by whole pieces, and outlives a full disk: what has no room waits in memory for some."""

from __future__ import annotations

import os
from pathlib import Path

from hpt_ray.errors import is_full


class GrowingFile:
    """Pieces in the order of `add`. `end` stands behind the last one; a file that is there must have it."""

    def __init__(self, path: Path, end: bytes = b""):
        self._path, self._end = path, end
        self.waiting = b""

    def add(self, piece: bytes) -> bool:
        """Write the piece, after what waits. False: the disk is full, and nothing of it is in the file yet."""
        self.waiting += piece
        try:
            self.settle()
        except OSError as error:
            if not is_full(error):
                raise
            return False
        return True

    def settle(self) -> None:
        """Write what waits. Raises `OSError` where that is not possible, with the file as it was."""
        if not self.waiting:
            return
        self._path.touch()
        with self._path.open("r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - len(self._end)))
            rest = memoryview(self.waiting + self._end)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.seek(start)
                file.write(self._end)
                file.truncate(size)
                raise
        self.waiting = b""
