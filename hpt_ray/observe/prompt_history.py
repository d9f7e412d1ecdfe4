"""What every attempt of every prompt came to: `prompt_history.jsonl` in the run folder.

One line an attempt: step, prompt, correct and total rollouts, how many of those were aborted because the
decision was certain without them, reason, and what trained. From it come the solve-rate maps over epochs,
and feedback functions that look at a prompt's history.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpt_ray.config import renamed
from hpt_ray.observe.growing_file import GrowingFile
from hpt_ray.observe.run_folder import read_json_lines, write_atomic
from hpt_ray.text import storable
from hpt_ray.types import Decision, FinishReason, Group


class PromptHistory:
    """Appends attempts; forgets those after a step that is done again."""

    def __init__(self, path: Path):
        self._path, self._file = path, GrowingFile(path)

    def append(self, step: int, pairs: Iterable[tuple[Group, Decision]]) -> bool:
        """False: the disk is full, and they wait for room."""
        lines = [
            {
                "step": step,
                "prompt_id": group.prompt.id,
                "correct": decision.num_correct,
                "rollouts": decision.num_rollouts,
                "aborted": sum(rollout.finish is FinishReason.ABORT for rollout in group.rollouts),
                "reason": decision.reason,
                "rollout_weight": decision.rollout_weight,
                "demo_weight": decision.demo_weight,
            }
            for group, decision in pairs
        ]
        return self._file.add(storable(_text(lines)).encode())

    def settle(self) -> None:
        """Write what waits for room; raises `OSError`."""
        self._file.settle()

    def cut_after(self, step: int) -> None:
        self.settle()
        before = renamed.existing(self._path)
        if before.is_file():
            lines = [renamed.fields(line) for line in read_json_lines(before)]
            write_atomic(self._path, _text(line for line in lines if line["step"] <= step))


def _text(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
