"""What benchmarks/soak.py writes is small, and gives its verdict again."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FILE = BENCHMARKS / "results" / "soak.json"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    return soak


def test_the_verdict_follows_from_the_committed_looks(soak: ModuleType) -> None:
    report = json.loads(FILE.read_text(encoding="utf-8"))
    looks = soak.unpack(report["raw"])
    assert len(looks) == 500
    assert soak.result(looks) == report["result"]
    assert soak.pack(looks) == report["raw"]
    assert FILE.stat().st_size < 100_000


def test_a_process_that_comes_and_goes_is_kept_as_it_was(soak: ModuleType) -> None:
    def look(step: int, **processes: float) -> dict:
        figures = {name: {"memory_mb": mb, "handles": 3, "threads": 1} for name, mb in processes.items()}
        return {
            "step": step,
            "store_mb": 0.5,
            "store_objects": step // 2,
            "spilled_mb": 0.0,
            "processes": figures,
        }

    looks = [look(1, driver=10.5), look(2, driver=10.5, idle=7.0), look(3, driver=11.0)]
    packed = soak.pack(looks)
    assert packed["processes"]["driver"]["memory_mb"] == "10.5×2 11.0"
    assert packed["processes"]["idle"]["handles"] == "- 3 -"
    assert soak.unpack(json.loads(json.dumps(packed))) == looks


def test_growth_is_seen(soak: ModuleType) -> None:
    looks = soak.unpack(json.loads(FILE.read_text(encoding="utf-8"))["raw"])
    leaking = next(name for name in looks[0]["processes"] if name.startswith("learner"))
    for look in looks:
        look["processes"][leaking]["memory_mb"] += 0.1 * look["step"]
    assert not soak.result(looks)["flat"]
