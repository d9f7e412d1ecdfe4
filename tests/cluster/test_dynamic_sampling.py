"""Prompts whose rewards are all equal are replaced by the next ones (DAPO), on real actors: drawn, trained, resumed."""

from __future__ import annotations

import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from command import REPLAY, TINY, run_main, write_reward_function

from hpt_ray.config.load import load_config
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.data.sampler import Sampler
from hpt_ray.driver.setup import asked_of, loader
from hpt_ray.observe.rollout_dump import dump_of, read_rollouts
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STEPS, BREAK, MOST = 4, 2, 3


def groups_of(run: RunFolder, step: int) -> list[list[dict[str, Any]]]:
    lines = read_rollouts(dump_of(run.rollouts, step))
    return [list(found) for _, found in groupby(lines, lambda line: line["group"])]


def drawn(words: list[str], count: int) -> list[str]:
    """The first prompts of the run's order."""
    config = load_config(Path(TINY[1]), words)
    _, load = loader(config, tokenizer_path(config.model.path))
    prompts = load(config.data.train, **asked_of(config, "rollouts"))
    numbers = Sampler(len(prompts), seed=config.run.seed, shuffle=config.data.shuffle).next_batch(count)
    return [prompts[i].id for i in numbers]


@pytest.mark.parametrize("algorithm", ["dapo", "hpt"])
def test_equal_rewards_are_replaced(tmp_path: Path, algorithm: str) -> None:
    """GRPO's groups of two are equal half of the time; with HPT unsolved ones train on their demonstration."""
    words = [
        f"algorithm.name={algorithm}",
        f"selection.max_num_gen_batches={MOST}",
        "group_size=2",
        "rollout.num_workers=2",
        f"run.steps={STEPS}",
        f"checkpoint.every={BREAK}",
        "checkpoint.keep=0",
        f"reward.function={write_reward_function(tmp_path)}",
    ]
    finished = run_main([*TINY, *words, f"run.dir={tmp_path / 'whole'}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    run = RunFolder((tmp_path / "whole" / "latest").resolve())
    size = load_config(Path(TINY[1]), words).prompts_per_step
    counts = []
    for step, line in enumerate(run.read_metrics()[-STEPS:], 1):
        groups = groups_of(run, step)
        replaced = [group for group in groups if group[0]["reason"] == "replaced"]
        kept = [group for group in groups if group[0]["reason"] != "replaced"]
        assert len(kept) == size
        assert line.get("selection/reason/replaced", 0) == len(replaced)
        for group in replaced:
            assert len({row["score"] for row in group}) == 1
            assert group[0]["rollout_weight"] == group[0]["demo_weight"] == 0
            assert all(row["advantage"] is None for row in group)
        if len(groups) < MOST * size:
            for group in kept:
                assert group[0]["demo_weight"] or len({row["score"] for row in group}) == 2
        if algorithm == "hpt":
            assert all(row["outcome"] == "correct" for group in replaced for row in group)
        counts.append(len(groups))
    assert sum(counts) > STEPS * size, "nothing was replaced"
    # Each prompt of the data's order once: what replaced others is not drawn again by the next step.
    order = [group[0]["prompt_id"] for step in range(1, STEPS + 1) for group in groups_of(run, step)]
    assert sorted(order) == sorted(drawn(words, sum(counts)))

    finished = run_main([str(run.root), f"step={STEPS}"], command=REPLAY)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"Step {STEPS}: " in finished.stdout
    again = RunFolder(tmp_path / "again" / run.root.name)
    shutil.copytree(run.root, again.root)
    shutil.rmtree(again.checkpoints / f"step-{STEPS:06d}")
    finished = run_main([*TINY, *words, f"run.dir={tmp_path / 'again'}", f"resume={again.root}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    first = {group[0]["prompt_id"] for group in groups_of(again, BREAK + 1)}
    assert first <= {*drawn(words, sum(counts[:BREAK]) + MOST * size)[sum(counts[:BREAK]) :]}
