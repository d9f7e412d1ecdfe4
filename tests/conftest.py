"""For every test: what it loads of a user's parts is gone after it. And disks that are small enough to be filled, and
a browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpt_ray.algorithms import ADVANTAGES, ALGORITHMS, GATES
from hpt_ray.observe.trackers import TRACKERS
from hpt_ray.reward import REWARD_FUNCTIONS
from hpt_ray.utils import plugins

TABLES = (ADVANTAGES, ALGORITHMS, GATES, TRACKERS, REWARD_FUNCTIONS)


@pytest.fixture(autouse=True)
def parts_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before, modules, path = [dict(table) for table in TABLES], set(sys.modules), list(sys.path)
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield
    sys.path[:] = path  # a user's file has brought its folder along
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)  # type: ignore[arg-type]
    for name in (
        sys.modules.keys() - modules
    ):  # files of a test's own folder, which another test may name as well
        if "pytest-of-" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`small_disk(MiB, max_files)`: a folder on a disk of its own, or the same one with another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size_mb: int, max_files: int = 10_000) -> Path:
        options = f"size={size_mb}m,nr_inodes={max_files}" + (",remount" if folder.is_mount() else "")
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"this machine lets nobody mount a small disk here: {mounted.stderr.strip()}")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for tests that are marked `needs_browser`."""
    from browser import BROWSER, playwright

    with playwright.sync_playwright() as started:
        switches = ["--no-sandbox", "--disable-background-networking"]
        chromium = started.chromium.launch(executable_path=BROWSER, args=switches)
        yield chromium
        chromium.close()
