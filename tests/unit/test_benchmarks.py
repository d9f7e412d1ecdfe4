"""Benchmarks: the one of the driver runs at a small size; of the others, what their results rest on."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hpt_ray.config.load import known_keys, load_config
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.rollout.worker import RolloutWorker
from hpt_ray.types import Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module(name)


@pytest.mark.cluster
@pytest.mark.long
def test_driver_scale_runs_and_says_what_the_driver_costs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    size = {"prompts": 6, "tokens": 64, "workers": 1, "ranks": 2, "profile": 5}
    words = [word for name, value in size.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(BENCHMARKS / "driver_scale.py"), "--out", str(out), *words]
    command += ["--factors", "1", "2"]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    report = json.loads(out.read_text())
    assert report["benchmark"] == "driver_scale"
    assert [run["prompts"] for run in report["raw"]["runs"]] == [6, 12, 6]
    assert all(seconds > 0 for run in report["raw"]["runs"] for seconds in run["driver_s"])
    assert 0 < report["result"]["driver_share"] < 0.02
    assert len(report["raw"]["profile"]) == 5


def test_the_stand_in_for_a_rollout_worker_answers_all_that_one_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in = load("driver_scale", monkeypatch).RecordedAnswers
    asked = {name for name in vars(RolloutWorker) if not name.startswith("_")}
    assert asked <= set(vars(stand_in))
    assert asyncio.run(stand_in(4).progress()).busy is False


def group(solved: list[bool], tokens: int = 10) -> Group:
    demonstration = Demonstration(np.array([2], np.int32), "1")
    prompt = Prompt("q", np.array([1], np.int32), "q", "1", "set", demonstration)
    ids, logprobs = np.zeros(tokens, np.int32), np.zeros(tokens, np.float32)
    rollouts = [Rollout("q", i, ids, logprobs, FinishReason.STOP, 0, "") for i in range(len(solved))]
    results = [RewardResult(float(s), Outcome.CORRECT if s else Outcome.WRONG) for s in solved]
    return Group(prompt, rollouts, results)


def test_avoidable_tokens_are_those_behind_the_sample_that_settles_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = load("early_gate", monkeypatch)

    def avoidable(solved: list[bool], gamma: float) -> int:
        return bench.avoidable(bench.Pass({"q": group(solved)}, 80, 1.0), gamma)

    wrong, right = [False], [True]
    assert avoidable(8 * wrong, 0.0) == 0  # the eighth wrong answer settles it
    assert avoidable(8 * wrong, 2 / 8) == 20  # the sixth
    assert avoidable(right + 7 * wrong, 2 / 8) == 10  # the seventh
    assert avoidable(8 * right, 4 / 8) == 0  # never


def test_early_gate_reports_a_decision_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("early_gate", monkeypatch)
    waited = bench.Pass({"q": group([True, True, True] + 5 * [False])}, 80, 1.0)
    other = bench.Pass({"q": group([True, True] + 6 * [False])}, 60, 1.0)
    assert bench.compared(waited, waited, 2 / 8) == {"other_decisions": 0, "other_rollouts": 0}
    assert bench.compared(other, waited, 2 / 8)["other_decisions"] == 1

    def stage(found: Any) -> dict[str, Any]:
        early = {
            name: {**bench.figures(found), **bench.compared(found, waited, gamma)}
            for name, gamma in bench.GAMMAS.items()
        }
        batch = {"waited": bench.figures(waited), "avoidable_tokens": dict.fromkeys(early, 8), "early": early}
        return {"model": "m", "solve_rate": 0.375, "batches": [batch]}

    assert bench.result([stage(waited)])["decisions_equal"] is True
    result = bench.result([stage(other)])
    assert result["decisions_equal"] is False
    assert result["tokens_saved"]["2/8"] == {"0.375": 0.25}
    assert result["tokens_avoidable"]["1/8"] == {"0.375": 0.1}


@pytest.mark.parametrize("name", ["even", "long_tail"])
def test_the_model_for_trl_ends_with_the_probability_it_is_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    bench = load("against_trl", monkeypatch)
    lengths = bench.LENGTHS[name]
    bench.write_model(tmp_path, lengths)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(82, (4, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = model(tokens).logits.softmax(-1)[..., model.config.eos_token_id]
    assert float(ends.mean()) == pytest.approx(lengths.end_probability, rel=0.3)
    assert float(ends.max() / ends.min()) < 4


def test_the_reward_is_a_fair_coin_that_depends_on_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    coin = load("trl_grpo", monkeypatch).coin
    tosses = [coin(f"answer {i}", "anything") for i in range(1000)]
    assert tosses == [coin(f"answer {i}") for i in range(1000)]
    assert 0.4 < sum(tosses) / 1000 < 0.6


def test_both_sides_know_every_setting_that_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("against_trl", monkeypatch)
    lengths = bench.LENGTHS["even"]
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(bench.our_config(lengths, tmp_path)), encoding="utf-8")
    assert load_config(file, []).reward.function == f"python:{bench.TRL_SIDE}:coin"
    read = set(re.findall(r'settings\["(\w+)"\]', bench.TRL_SIDE.read_text(encoding="utf-8")))
    assert read == {*bench.trl_settings(lengths, tmp_path, 1, False)}


def test_every_key_that_a_benchmark_names_exists() -> None:
    sections = {name.partition(".")[0] for name in known_keys() if "." in name}
    named = re.compile(rf"[\"'](({'|'.join(sections)})\.[a-z_]+(?:\.[a-z_]+)*)(?:=|[\"'])")
    found = {
        match[1] for path in BENCHMARKS.glob("*.py") for match in named.finditer(path.read_text("utf-8"))
    }
    assert len(found) > 40
    dicts = tuple(f"{name}." for name, key in known_keys().items() if "dict" in key.type_name)
    assert [key for key in found if key not in known_keys() and not key.startswith(dicts)] == []


def test_a_side_that_failed_is_named_and_gives_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("against_trl", monkeypatch)
    ours = {"samples_per_s": 30.0, "mean_length": 64.0, "mean_reward": 0.5}
    slow = {"samples_per_s": 5.0, "mean_length": 64.0, "mean_reward": 0.5}
    fast = {**slow, "samples_per_s": 10.0}
    ways = [{"threads": n, "continuous_batching": False} for n in (1, 2)]
    good = {"hpt_ray": ours, "trl": [way | run for way, run in zip(ways, (slow, fast), strict=True)]}
    assert bench.result({"even": good}) == {
        "samples_per_s_ratio": {"even": 3.0},
        "alike": {"even": True},
        "failures": [],
    }
    shorter = {"hpt_ray": {**ours, "mean_length": 50.0}, "trl": good["trl"]}
    assert bench.result({"even": shorter})["alike"] == {"even": False}
    failed = {"hpt_ray": {"failure": "x"}, "trl": good["trl"]}
    half = {"hpt_ray": ours, "trl": [good["trl"][0], ways[1] | {"failure": "x"}]}
    result = bench.result({"even": failed, "long_tail": half})
    assert result["samples_per_s_ratio"] == {"even": None, "long_tail": None}
    assert result["failures"] == [
        "even, hpt_ray",
        "long_tail, TRL, 2 threads, continuous batching False",
    ]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "tests" / "cluster"))
    return load("faults", monkeypatch)


@pytest.fixture
def target(faults: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A run that is a folder, and a driver that only sleeps."""

    def start() -> tuple[subprocess.Popen[bytes], Path]:
        return subprocess.Popen(["sleep", "60"]), tmp_path / "said"

    made = faults.Target(tmp_path / "disk", None, None, random.Random(0), start, lambda: None)
    yield made
    made.kill_driver()


def test_a_filled_disk_has_the_room_that_is_left_and_gets_the_other_back(
    faults: ModuleType, target: Any, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk(2)
    before = shutil.disk_usage(disk).free
    for left in (2**18, 0):
        undo = faults.filled(lambda target: target.runs, left)(target)
        assert shutil.disk_usage(disk).free == left
        undo()
        assert shutil.disk_usage(disk).free == before


def test_after_the_clock_went_back_the_run_that_goes_on_is_from_tomorrow(
    faults: ModuleType, target: Any
) -> None:
    before = RunFolder.create(target.runs, "demo")
    (before.checkpoints / "step-000001").mkdir()
    faults.clock_back(target)
    assert target.driver.poll() is not None
    later = RunFolder.newest(target.runs, "demo")
    assert later is not None
    assert later == target.folder
    assert later.root.name > before.root.name
    assert later.checkpoints.stat().st_mtime > time.time() + 3600
    assert RunFolder.create(target.runs, "demo").root.name > later.root.name
