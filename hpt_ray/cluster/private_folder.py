"""Where a Ray that is started here keeps its sockets, logs, spilled objects and code: where only this user enters.

Ray itself makes its folders open to everybody, so that users of one machine can share a cluster; a run's own Ray is
for nobody else.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

# A socket's path may have 107 bytes; this is what Ray puts below its folder: session_TIME_PID/sockets/plasma_store.
SOCKET_BYTES = 107 - len("/session_2026-01-31_23-59-59_999999_9999999/sockets/plasma_store")


def session_folder() -> Path:
    """What Ray takes as its folder, inside one that is private: of `RAY_TMPDIR`, else of `TMPDIR` or /tmp."""
    chosen = os.environ.get("RAY_TMPDIR")
    folder = _within(Path(chosen or tempfile.gettempdir()))
    if chosen is None and len(os.fsencode(folder)) > SOCKET_BYTES:
        folder = _within(Path("/tmp"))
    return folder


def _within(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    private = parent / f"ray-{os.getuid()}"
    with suppress(FileExistsError):
        private.mkdir(mode=0o700)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        private = Path(tempfile.mkdtemp(prefix="r", dir=parent))  # somebody else was there first
    else:
        private.chmod(0o700)
    return private / "r"
