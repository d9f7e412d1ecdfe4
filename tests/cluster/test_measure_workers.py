"""The meter over processes of a real Ray: the same numbers as in one, in the order of the prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpt_ray.cli import measure

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

REWARD = "def grade(response, ground_truth):\n    return float(len(response) % 2)\n"


@pytest.fixture
def words(ray_cluster, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("reward.py").write_text(REWARD)
    lines = [{"prompt": f"{a}+{a}=", "solution": f"{2 * a}", "answer": f"{2 * a}"} for a in range(10)]
    Path("data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        *("--model", str(tiny_model("qwen2", True)), "--method", "rloo", "--method", "sft"),
        *("--prompts", "8", "--reference", "32", "--dimensions", "512", "data.train=[data.jsonl]"),
        *(
            "data.template=plain",
            f"reward.function=python:{tmp_path}/reward.py:grade",
            "reward.require_finished=false",
        ),
        *("group_size=4", "data.max_response_tokens=5", "data.max_prompt_tokens=40"),
    ]


def numbers(out: str) -> dict[str, float]:
    """Every figure of all prompts that is no time."""
    (model,) = json.loads((Path(out) / "measure.json").read_text())["models"]
    methods = model["sets"]["all"]["methods"]
    found = {
        f"{method}/{quantity}": interval["value"]
        for method, quantities in methods.items()
        for quantity, interval in quantities.items()
        if interval is not None and quantity != "snr_per_second"
    }
    assert {"rloo/variance", "sft/variance"} <= found.keys()
    return found | {name: model["sets"][name]["prompts"] for name in model["sets"]}


def test_workers_measure_what_one_process_does(words: list[str]) -> None:
    assert measure.main([*words, "--out", "alone"]) == 0
    assert measure.main([*words, "--workers", "2", "--out", "two"]) == 0
    assert numbers("two") == pytest.approx(numbers("alone"), rel=1e-4)
    assert {path.name for path in Path("two/logs").iterdir()} == {"meter-0.log", "meter-1.log"}


def test_too_many_workers_are_refused_with_what_there_is(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--workers", "9", "cluster.placement_timeout_s=1"]  # of 8 cores
    assert measure.main([*words, *more, "--out", "many"]) == 2
    assert "9 × meter with 1 CPU" in capsys.readouterr().err
