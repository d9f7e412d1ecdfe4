"""A resumed run is the same run: k steps, an end, and N − k steps come to what N steps come to, bit for bit.

Each case is run once without a break, with checkpoints, and once more from a copy of its folder as it was at
step k. Parameters, optimizer state, metrics but for times, and the order of prompts must be equal.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest
from command import TINY, run_main, write_reward_function
from identical import check_identical

from hpt_ray.data.mini import resolve
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]

STEPS, BREAK = 4, 2


@dataclass(frozen=True)
class Case:
    name: str
    words: tuple[str, ...]


CASES = [
    Case(
        "hpt with histories of prompts, ZeRO-1, where an epoch ends",
        (
            "selection.gate=posterior",
            "selection.gamma=0.25",
            "learner.zero_stage=1",
            "data.train=[{sixteen}]",
        ),
    ),
    Case(
        "grpo, ZeRO-2, mini-batches, one step stale, two engines",
        (
            "algorithm.name=grpo",
            "learner.zero_stage=2",
            "learner.num_ranks=2",
            "updates_per_step=2",
            "rollout.max_off_policy_steps=1",
            "rollout.num_workers=2",
        ),
    ),
    Case(
        "luffy with rehearsal, two ranks, mini-batches, where the rows' epoch ends",
        (
            "algorithm.name=luffy",
            "learner.num_ranks=2",
            "updates_per_step=2",
            "data.rehearsal=[{sixteen}]",
            "data.rehearsal_per_step=6",
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
        "grpo of adapters, KL to their base, ZeRO-3",
        (
            "algorithm.name=grpo",
            "algorithm.kl_coef=0.1",
            "learner.lora.rank=4",
            "learner.learning_rate=5e-3",
            "learner.zero_stage=3",
            "learner.num_ranks=2",
        ),
    ),
    Case(
        "sft, ZeRO-2, where an epoch ends",
        ("algorithm.name=sft", "learner.zero_stage=2", "data.train=[{sixteen}]"),
    ),
]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> dict[str, str]:
    """The reward function, and a file of 16 prompts: an epoch of two steps."""
    folder = tmp_path_factory.mktemp("material")
    sixteen = folder / "sixteen.parquet"
    pq.write_table(pq.read_table(resolve("mini:train")).slice(0, 16), sixteen)
    return {"sixteen": str(sixteen), "reward_function": write_reward_function(folder)}


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
        f"reward.function={material['reward_function']}",
        *(word.format(**material) for word in case.words),
    ]
    train(words)
    whole = RunFolder((tmp_path / "whole" / "latest").resolve())
    broken = RunFolder(tmp_path / "broken" / whole.root.name)
    shutil.copytree(whole.root, broken.root)
    shutil.rmtree(broken.checkpoints / f"step-{STEPS:06d}")
    train([*words, f"run.dir={tmp_path / 'broken'}", f"resume={broken.root}"])

    check_identical(broken, whole, STEPS)
