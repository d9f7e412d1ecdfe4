"""What had another name in version 0.1, in one table each: keys, their values, metrics, fields, files.

A key that a person writes under its old name is refused with the new one (`config/load.py`). What version 0.1
itself wrote, run folders, checkpoints, metrics, is read under the new names. Nothing is written under an old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = {
    "questions_per_step": "prompts_per_step",
    "rollouts_per_question": "group_size",
    "tokens_per_microbatch": "max_tokens_per_micro_batch",
    "rollout.max_staleness": "rollout.max_off_policy_steps",
    "reward.grader": "reward.function",
    "reward.graders": "reward.functions",
    "learner.recompute_old_logps": "learner.recompute_old_logprobs",
    "weight_sync.carrier": "weight_sync.backend",
    "algorithm.rollout_normalizer": "algorithm.rollout_loss_aggregation",
    "algorithm.demo_normalizer": "algorithm.demo_loss_aggregation",
    "algorithm.rollout_mask": "algorithm.rollout_clip",
    "algorithm.demo_mask": "algorithm.demo_clip",
}

_AGGREGATIONS = {
    "row_mean": "seq-mean-token-mean",
    "row_sum": "seq-mean-token-sum",
    "constant": "seq-mean-token-sum-norm",
    "token_mean": "token-mean",
    "mixed_token_mean": "mixed-token-mean",
    "union_constant": "union-seq-mean-token-sum-norm",
    "union_token_mean": "union-token-mean",
    "official_sum": "official-sum",
    "official_microbatch_mean": "official-micro-batch-mean",
}
_CLIPS = {"clip": "ppo", "cap": "cispo"}
VALUES = {  # by the key's new name
    "algorithm.rollout_loss_aggregation": _AGGREGATIONS,
    "algorithm.demo_loss_aggregation": _AGGREGATIONS,
    "algorithm.rollout_clip": _CLIPS,
    "algorithm.demo_clip": _CLIPS,
}

METRICS = {  # by what a metric's name begins with
    "selection/demo_question_ratio": "selection/demo_prompt_ratio",
    "selection/demo_row_ratio": "selection/demo_sample_ratio",
    "policy/logp_gap_mean": "policy/logprob_gap_mean",
    "policy/logp_gap_max": "policy/logprob_gap_max",
    "learner/skipped_rows": "learner/skipped_samples",
    "rollout/staleness": "rollout/off_policy_steps",
}

FIELDS = {  # of state.json, data_card.json, rollouts/*.parquet, prompt_history.jsonl, prompts.parquet
    "question_id": "prompt_id",
    "num_questions": "num_prompts",
    "visits": "attempts",
    "logps": "logprobs",
    "num_solved": "num_correct",
    "solved": "correct",
    "grader": "reward_check",
}

FILES = {"prompt_history.jsonl": "feedback.jsonl", "prompts.parquet": "questions.parquet"}  # new → old


def metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl under today's names. Example: `metrics({"learner/skipped_rows": 0})`."""
    return {_metric(name): value for name, value in line.items()}


def fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the fields' names of today. What is in it stays: its keys may be the ids of prompts."""
    return {FIELDS.get(name, name): value for name, value in record.items()}


def config(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The nested content of a config.yaml that a run wrote, with today's keys and values."""
    new: dict[str, Any] = {}
    for name, value in content.items():
        key = KEYS.get(f"{prefix}{name}", f"{prefix}{name}")
        if isinstance(value, Mapping):
            value = config(value, f"{key}.")
        elif isinstance(value, str):
            value = VALUES.get(key, {}).get(value, value)
        elif key == "phases":
            value = [config(phase) for phase in value]
        new[key.removeprefix(prefix)] = value
    return new


def existing(path: Path) -> Path:
    """`path`; where only the file of its old name is there, that one."""
    old = path.with_name(FILES.get(path.name, path.name))
    return old if old.exists() and not path.exists() else path


def _metric(name: str) -> str:
    old = next((old for old in METRICS if name.startswith(old)), "")
    return METRICS.get(old, "") + name.removeprefix(old)
