"""A resumed run is the same run: k steps, an end, and N − k steps come to what N steps come to, bit for bit.

Each case is run once without a break, with checkpoints, and once more from a copy of its folder as it was at
step k. Parameters, optimizer state, metrics but for times, and the order of questions must be equal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from command import TINY, run_main, write_grader
from safetensors.torch import load_file

from hpt_ray.data.mini import resolve
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STEPS, BREAK = 4, 2
# Numbers that say how long things took.
TIMES = ("time/", "_per_s", "busy_share", "memory/")


@dataclass(frozen=True)
class Case:
    name: str
    words: tuple[str, ...]


CASES = [
    Case("hpt, ZeRO-1, in the middle of an epoch", ("learner.zero_stage=1",)),
    Case(
        "grpo, ZeRO-2, mini-batches, one step stale, two engines",
        (
            "algorithm.name=grpo",
            "learner.zero_stage=2",
            "learner.num_ranks=2",
            "updates_per_step=2",
            "rollout.max_staleness=1",
            "rollout.num_workers=2",
        ),
    ),
    Case(
        "ppo, ZeRO-3, where an epoch ends",
        (
            "algorithm.name=ppo",
            "learner.zero_stage=3",
            "learner.num_ranks=2",
            "critic.num_cpus=0.5",
            "data.train=[{sixteen}]",
        ),
    ),
    Case(
        "sft, ZeRO-2, where an epoch ends",
        ("algorithm.name=sft", "learner.zero_stage=2", "data.train=[{sixteen}]"),
    ),
]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> dict[str, str]:
    """The grader, and a file of 16 questions: an epoch of two steps."""
    folder = tmp_path_factory.mktemp("material")
    sixteen = folder / "sixteen.parquet"
    pq.write_table(pq.read_table(resolve("mini:train")).slice(0, 16), sixteen)
    return {"sixteen": str(sixteen), "grader": write_grader(folder)}


def train(words: list[str]) -> None:
    finished = run_main([*TINY, *words])
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_resumed_run_is_the_same_run(case: Case, material, tmp_path):
    words = [
        f"run.dir={tmp_path / 'whole'}",
        f"run.steps={STEPS}",
        "run.deterministic=true",
        f"checkpoint.every={BREAK}",
        "checkpoint.keep=0",
        f"reward.grader={material['grader']}",
        *(word.format(**material) for word in case.words),
    ]
    train(words)
    whole = RunFolder((tmp_path / "whole" / "latest").resolve())
    broken = RunFolder(tmp_path / "broken" / whole.root.name)
    shutil.copytree(whole.root, broken.root)
    shutil.rmtree(broken.checkpoints / f"step-{STEPS:06d}")
    train([*words, f"run.dir={tmp_path / 'broken'}", f"resume={broken.root}"])

    assert order(broken) == order(whole)
    ours, theirs = numbers(broken), numbers(whole)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert ours == theirs
    last = f"step-{STEPS:06d}"
    one, other = (load_file(f.checkpoints / last / "hf" / "model.safetensors") for f in (broken, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    compared = 0
    for role in ("learner", "critic"):
        for path in sorted((whole.checkpoints / last / role).rglob("*.pt")):
            twin = broken.checkpoints / last / path.relative_to(whole.checkpoints / last)
            compared += same(
                torch.load(path, weights_only=False), torch.load(twin, weights_only=False), str(path)
            )
    assert compared > 10, "there was no optimizer state to compare"


def order(folder: RunFolder) -> list[tuple[int, str]]:
    """Which question was trained on when."""
    lines = (folder.root / "feedback.jsonl").read_text().splitlines()
    return [(visit["step"], visit["question_id"]) for visit in map(json.loads, lines)]


def numbers(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    return [
        {name: value for name, value in line.items() if not any(part in name for part in TIMES)}
        for line in folder.read_metrics()
    ]


def same(one: Any, other: Any, where: str) -> int:
    """Both trees hold the same tensors, bit for bit; how many there were."""
    tensors = dict(leaves(one))
    others = dict(leaves(other))
    assert tensors.keys() == others.keys(), where
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), f"{where}: {name}"
    return len(tensors)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}/{i}")
