"""For every test: what it loads of a user's parts is gone after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from hpt_ray.algorithms import ADVANTAGES, ALGORITHMS, GATES
from hpt_ray.observe.trackers import TRACKERS
from hpt_ray.reward import REWARD_FUNCTIONS
from hpt_ray.utils import plugins

TABLES = (ADVANTAGES, ALGORITHMS, GATES, TRACKERS, REWARD_FUNCTIONS)


@pytest.fixture(autouse=True)
def parts_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before, modules = [dict(table) for table in TABLES], set(sys.modules)
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)  # type: ignore[arg-type]
    for name in (
        sys.modules.keys() - modules
    ):  # files of a test's own folder, which another test may name as well
        if "pytest-of-" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
