"""From a decided group to the rows the learner trains on."""

from __future__ import annotations

import numpy as np

from hpt_ray.types import Decision, Group, Row


def rows_of(group: Group, decision: Decision, *, index: int) -> list[Row]:
    """The rows of one question: its rollouts where α > 0, its demonstration where β > 0.

    `index` is the question's number within the optimizer step. Lost and aborted rollouts carry no
    rows. A demonstration has reward 1: it is correct by the data's word.
    """
    question = group.question
    rows = []
    if decision.rollout_weight > 0:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if not rollout.finish.is_answer or not len(rollout.token_ids):
                continue
            rows.append(
                Row(
                    question_id=question.id,
                    token_ids=np.concatenate([question.prompt_ids, rollout.token_ids]).astype(np.int32),
                    prompt_length=len(question.prompt_ids),
                    logp_old=rollout.logps,
                    is_demo=False,
                    reward=verdict.score,
                    group=index,
                    weight=decision.rollout_weight,
                )
            )
    if decision.demo_weight > 0:
        assert question.demonstration is not None, f"the gate asked for a demonstration of {question.id}"
        demo = question.demonstration.token_ids
        rows.append(
            Row(
                question_id=question.id,
                token_ids=np.concatenate([question.prompt_ids, demo]).astype(np.int32),
                prompt_length=len(question.prompt_ids),
                logp_old=np.full(len(demo), np.nan, np.float32),
                is_demo=True,
                reward=1.0,
                group=index,
                weight=decision.demo_weight,
            )
        )
    return rows
