"""What every visit of every question came to: `feedback.jsonl` in the run folder.

One line a visit: step, question, solved and total rollouts, how many of those were aborted because the
decision was certain without them, reason, and what trained. From it come the solve-rate maps over epochs,
and feedback functions that look at a question's history.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hpt_ray.types import Decision, FinishReason, Group


class FeedbackLog:
    """Appends visits; forgets those after a step that is done again."""

    def __init__(self, path: Path):
        self._path = path

    def append(self, step: int, pairs: Iterable[tuple[Group, Decision]]) -> None:
        lines = [
            {
                "step": step,
                "question_id": group.question.id,
                "solved": decision.num_solved,
                "rollouts": decision.num_rollouts,
                "aborted": sum(rollout.finish is FinishReason.ABORT for rollout in group.rollouts),
                "reason": decision.reason,
                "rollout_weight": decision.rollout_weight,
                "demo_weight": decision.demo_weight,
            }
            for group, decision in pairs
        ]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def cut_after(self, step: int) -> None:
        if self._path.is_file():
            kept = [
                x
                for x in self._path.read_text(encoding="utf-8").splitlines()
                if json.loads(x)["step"] <= step
            ]
            self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
