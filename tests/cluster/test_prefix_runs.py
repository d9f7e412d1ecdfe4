"""Rollouts that continue a prefix of the demonstration, on real actors: drawn, graded, trained, resumed, replayed."""

from __future__ import annotations

import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import REPLAY, TINY, run_main, write_reward_function
from identical import check_identical

from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.observe.rollout_dump import dump_of, read_rollouts
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STEPS, BREAK, N = 4, 2, 4


def trained(folder: Path, *words: str) -> tuple[RunFolder, list[str]]:
    """A deterministic run with a checkpoint at `BREAK`, and its words."""
    reward = write_reward_function(folder)
    words = (
        f"run.steps={STEPS}",
        "run.deterministic=true",
        f"checkpoint.every={BREAK}",
        "checkpoint.keep=0",
        f"reward.function={reward}",
        *words,
    )
    finished = run_main([*TINY, *words, f"run.dir={folder / 'whole'}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return RunFolder((folder / "whole" / "latest").resolve()), list(words)


def check_the_same_again(run: RunFolder, words: list[str], folder: Path) -> None:
    """Gone on with from `BREAK` it is the same run bit for bit, and its last steps are replayed from the dumps."""
    again = RunFolder(folder / "again" / run.root.name)
    shutil.copytree(run.root, again.root)
    shutil.rmtree(again.checkpoints / f"step-{STEPS:06d}")
    finished = run_main([*TINY, *words, f"run.dir={folder / 'again'}", f"resume={again.root}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    check_identical(again, run, STEPS)
    finished = run_main([str(run.root), f"step={STEPS}"], command=REPLAY)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"Step {STEPS}: the same" in finished.stdout


def lines_of(run: RunFolder) -> list[dict[str, Any]]:
    lines = [line for step in range(1, STEPS + 1) for line in read_rollouts(dump_of(run.rollouts, step))]
    check_prefixes(lines)
    return lines


def check_prefixes(lines: list[dict[str, Any]]) -> None:
    """A response begins with its prefix, of which no log-prob is known, and goes on with tokens of its own."""
    tokenizer = load_tokenizer(tokenizer_path("mini:t-fresh"))
    for line in lines:
        k = line["prefix_length"]
        assert line["demonstration"].startswith(tokenizer.decode(line["token_ids"][:k]))
        assert np.isnan(line["logprobs"]).tolist() == [i < k for i in range(len(line["token_ids"]))]
        assert k < len(line["token_ids"]) <= 44
    assert any(line["prefix_length"] for line in lines)


def by_prompt(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [list(found) for _, found in groupby(lines, lambda line: (line["step"], line["group"]))]


def check_gap(lines: list[dict[str, Any]]) -> None:
    """Sampler and learner have the same weights, and the same words before each token."""
    for line in lines:
        assert 0 < line["policy/logprob_gap_max"] < 1e-4
        assert line["policy/logprob_gap_mean"] < 2e-6


def test_the_last_of_a_group_continues_a_prefix(tmp_path):
    """Prefix-RFT, one step ahead of the weights, with two engines."""
    run, words = trained(
        tmp_path,
        "algorithm.name=prefix_rft",
        "algorithm.prefix=[0.9,0.3,4]",
        "rollout.max_off_policy_steps=1",
        "rollout.num_workers=2",
    )
    lines = lines_of(run)
    assert {line["sample"] for line in lines if line["prefix_length"]} == {N - 1}
    assert any(line["prefix_length"] and line["advantage"] for line in lines)
    for attempt in map(json.loads, (run.root / "prompt_history.jsonl").read_text().splitlines()):
        mine = [
            line
            for line in lines
            if (line["step"], line["prompt_id"]) == (attempt["step"], attempt["prompt_id"])
        ]
        own = [line for line in mine if not line["prefix_length"]]
        assert attempt["rollouts"] == len(own) >= N - 1
        assert attempt["correct"] == sum(line["outcome"] == "correct" for line in own)
    for line in run.read_metrics():
        assert 0 < line["rollout/prefix_ratio"] <= 1 / N
        assert line["rollout/prefix_length_mean"] >= 1
        assert 0 < line["selection/demo_sample_ratio"] < 1 / N
        assert line["selection/demo_share"] == 0
    check_gap(run.read_metrics()[:1])  # later rollouts began with the weights before
    check_the_same_again(run, words, tmp_path)


def test_a_prompt_that_nobody_solves_is_drawn_again_after_a_prefix(tmp_path):
    """BREAD, with two engines."""
    run, words = trained(tmp_path, "algorithm.name=bread", "rollout.num_workers=2", "group_size=2")
    again = 0
    for of_prompt in by_prompt(lines_of(run)):
        draws = [of_prompt[i : i + 2] for i in range(0, len(of_prompt), 2)]
        assert [line["sample"] for line in of_prompt] == list(range(len(of_prompt)))
        assert [len({line["prefix_length"] for line in draw}) for draw in draws] == [1] * len(draws)
        right = [sum(line["outcome"] == "correct" for line in draw) for draw in draws]
        assert [line["superseded"] for line in of_prompt] == [True] * (len(of_prompt) - 2) + [False] * 2
        assert all((line["advantage"] is None) == line["superseded"] for line in of_prompt)
        assert len(draws) == 1 or right[0] == 0
        assert right[-1] == 1 or (len(draws) == 1 and right[0] == 2) or len(draws) > 3
        assert 1 not in right[:-1]
        again += len(draws) > 1 and any(line["advantage"] for line in of_prompt)
    assert again, "no prefixed rollout trained"
    for attempt in map(json.loads, (run.root / "prompt_history.jsonl").read_text().splitlines()):
        assert attempt["rollouts"] == 2
    assert any(line.get("rollout/prefix_ratio") for line in run.read_metrics())
    assert not any(line["selection/demo_sample_ratio"] for line in run.read_metrics())
    check_gap(run.read_metrics())
    check_the_same_again(run, words, tmp_path)
