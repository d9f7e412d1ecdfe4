"""A folder where only this user enters: for sockets, logs, spilled objects and code of a Ray that is started here, and
for the files by which the processes of an engine meet.

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
    folder = private_folder(Path(chosen or tempfile.gettempdir())) / "r"
    if chosen is None and len(os.fsencode(folder)) > SOCKET_BYTES:
        folder = private_folder(Path("/tmp")) / "r"
    return folder


def private_folder(parent: Path) -> Path:
    """This user's own in `parent`, which may be open to everybody; one of mode 0700 in any case."""
    parent.mkdir(parents=True, exist_ok=True)
    private = parent / f"ray-{os.getuid()}"
    with suppress(FileExistsError):
        private.mkdir(mode=0o700)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        private = Path(tempfile.mkdtemp(prefix="r", dir=parent))  # somebody else was there first
    else:
        private.chmod(0o700)
    return private
