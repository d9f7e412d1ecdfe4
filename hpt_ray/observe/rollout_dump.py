"""The rollouts of one step as parquet, one line per rollout, with verdict and decision.

`rollouts/step-000012.parquet` holds token ids and log-probs as sampled, so a step can be looked at, graded
again or compared with the learner later. Texts are for people. Written aside and renamed, so a file that is
there is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpt_ray.observe.metrics import branch_of
from hpt_ray.records import Decision, Group

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("question_id", pa.string()),
        ("data_source", pa.string()),
        ("prompt", pa.string()),
        ("reference", pa.string()),  # the ground truth; numbers and lists as JSON
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logps", pa.list_(pa.float32())),
        ("finish", pa.string()),
        ("weight_version", pa.int32()),
        ("score", pa.float32()),
        ("outcome", pa.string()),
        ("extracted", pa.string()),
        ("detail", pa.string()),
        ("branch", pa.string()),
        ("reason", pa.string()),
        ("num_solved", pa.int32()),
    ]
)


def write_rollouts(folder: Path, step: int, pairs: Sequence[tuple[Group, Decision]]) -> Path:
    """Write all rollouts of `step` and return the file. A step without rollouts gives an empty table."""
    path = folder / f"step-{step:06d}.parquet"
    aside = path.with_name(f".{path.name}.partial")
    lines = [line for group, decision in pairs for line in _lines(step, group, decision)]
    pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), aside, compression="zstd")
    aside.replace(path)
    return path


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The lines of one file as dicts, by the names of `SCHEMA`."""
    return pq.read_table(path).to_pylist()


def _lines(step: int, group: Group, decision: Decision) -> Iterator[dict[str, Any]]:
    question = group.question
    truth = question.ground_truth
    for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
        yield {
            "step": step,
            "question_id": question.id,
            "data_source": question.data_source,
            "prompt": question.prompt,
            "reference": truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False),
            "sample": rollout.sample,
            "text": rollout.text,
            "token_ids": rollout.token_ids,
            "logps": rollout.logps,
            "finish": rollout.finish.value,
            "weight_version": rollout.weight_version,
            "score": verdict.score,
            "outcome": verdict.outcome.value,
            "extracted": verdict.extracted,
            "detail": verdict.detail,
            "branch": branch_of(decision),
            "reason": decision.reason,
            "num_solved": decision.num_solved,
        }
