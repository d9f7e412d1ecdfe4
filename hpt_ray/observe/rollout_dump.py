"""Graded groups as parquet: one line per rollout, with verdict and decision, in the order of training.

`rollouts/step-000012.parquet` holds all that training on the step needs but the questions, which come from
the data by their id: token ids and log-probs as sampled, scores, the gate's weights. So a step can be looked
at, graded again, or replayed. A question without rollouts has one line whose `sample` is null. Checkpoints
hold groups that no gate has seen yet in the same form, without a step and a decision. Texts are for people.

A file is written aside and renamed, so one that is there is whole.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpt_ray.errors import UserError
from hpt_ray.observe.metrics import branch_of
from hpt_ray.types import Decision, FinishReason, Group, Outcome, Question, Rollout, Verdict

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("group", pa.int32()),  # 0, 1, … in the order in which the step's questions were trained on
        ("question_id", pa.string()),
        ("data_source", pa.string()),
        ("prompt", pa.string()),
        ("reference", pa.string()),  # the ground truth; numbers and lists as JSON
        ("request_id", pa.string()),  # `question_id`, or `question_id#2` where the step has it twice
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logps", pa.list_(pa.float32())),
        ("finish", pa.string()),
        ("weight_version", pa.int32()),
        ("score", pa.float64()),
        ("outcome", pa.string()),
        ("extracted", pa.string()),
        ("detail", pa.string()),
        ("branch", pa.string()),
        ("reason", pa.string()),
        ("num_solved", pa.int32()),
        ("num_rollouts", pa.int32()),
        ("rollout_weight", pa.float64()),  # α
        ("demo_weight", pa.float64()),  # β
    ]
)

Line = dict[str, Any]
Pair = tuple[Group, Decision | None]


def dump_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.parquet"


def write_rollouts(folder: Path, step: int, pairs: Sequence[tuple[Group, Decision]]) -> Path:
    """Write the groups of `step`, in the order in which they were trained on, and return the file."""
    return _write(dump_of(folder, step), step, pairs)


def write_groups(path: Path, groups: Sequence[Group]) -> Path:
    """Write groups that no gate has decided on."""
    return _write(path, None, [(group, None) for group in groups])


def read_rollouts(path: Path) -> list[Line]:
    """The lines of one file as dicts, by the names of `SCHEMA`."""
    return pq.read_table(path).to_pylist()


def read_pairs(path: Path, questions: Mapping[str, Question]) -> list[tuple[Group, Decision]]:
    """The groups of a step and their decisions, in the order in which they were trained on.

    Raises `UserError` where a question is not among `questions`, or the file is of an older version.
    """
    return [(group, _decision(line)) for group, line in _read(path, questions)]


def read_groups(path: Path, questions: Mapping[str, Question]) -> list[Group]:
    """The groups that `write_groups` was given, in their order. Raises `UserError` as `read_pairs` does."""
    return [group for group, _ in _read(path, questions)]


def question_ids(path: Path) -> set[str]:
    """The ids of all questions in a file."""
    return set(pq.read_table(path, columns=["question_id"])["question_id"].to_pylist())


# -- writing ---------------------------------------------------------------------------------------


def _write(path: Path, step: int | None, pairs: Sequence[Pair]) -> Path:
    lines = [
        {"step": step, "group": i, **_question_fields(group), **_decision_fields(decision), **line}
        for i, (group, decision) in enumerate(pairs)
        for line in _rollout_fields(group)
    ]
    columns = []
    for field in SCHEMA:
        values = [line.get(field.name) for line in lines]
        is_list = pa.types.is_list(field.type)
        columns.append(_lists(values, field.type.value_type) if is_list else pa.array(values, field.type))
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), aside, compression="zstd")
    aside.replace(path)
    return path


def _lists(arrays: Sequence[np.ndarray | None], kind: pa.DataType) -> pa.ListArray:
    """A column of arrays, laid end to end rather than value by value; None is null."""
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    values = np.concatenate([np.zeros(0, kind.to_pandas_dtype()), *(a for a in arrays if a is not None)])
    mask = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(values, kind), mask=mask)


def _question_fields(group: Group) -> Line:
    question, truth = group.question, group.question.ground_truth
    return {
        "question_id": question.id,
        "data_source": question.data_source,
        "prompt": question.prompt,
        "reference": truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False),
    }


def _rollout_fields(group: Group) -> list[Line]:
    """One line per rollout; one empty line for a question without rollouts."""
    return [
        {
            "request_id": rollout.question_id,
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
        }
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
    ] or [{}]


def _decision_fields(decision: Decision | None) -> Line:
    if decision is None:
        return {}
    return {
        "branch": branch_of(decision),
        "reason": decision.reason,
        "num_solved": decision.num_solved,
        "num_rollouts": decision.num_rollouts,
        "rollout_weight": decision.rollout_weight,
        "demo_weight": decision.demo_weight,
    }


# -- reading ---------------------------------------------------------------------------------------


def _read(path: Path, questions: Mapping[str, Question]) -> list[tuple[Group, Line]]:
    """Each group with its first line."""
    table = pq.read_table(path)
    absent = set(SCHEMA.names) - set(table.column_names)
    if absent:
        raise UserError(
            f"{path} was written by an older version of hpt_ray: it lacks {', '.join(sorted(absent))}, so "
            "its groups cannot be made again."
        )
    token_ids, logps = (table[name].combine_chunks() for name in ("token_ids", "logps"))
    lines = table.drop_columns(["token_ids", "logps"]).to_pylist()
    pairs = []
    for _, run in itertools.groupby(range(len(lines)), key=lambda i: lines[i]["group"]):
        numbers = list(run)
        first = lines[numbers[0]]
        question = questions.get(first["question_id"])
        if question is None:
            raise UserError(
                f"{path}: question {first['question_id']} is not in the data. Use the data.train, template "
                "and limits that the run was made with."
            )
        sampled = [i for i in numbers if lines[i]["sample"] is not None]
        rollouts = [_rollout(lines[i], token_ids[i], logps[i]) for i in sampled]
        verdicts = [_verdict(lines[i]) for i in sampled]
        pairs.append((Group(question, rollouts, verdicts), first))
    return pairs


def _rollout(line: Line, token_ids: pa.ListScalar, logps: pa.ListScalar) -> Rollout:
    return Rollout(
        question_id=line["request_id"],
        sample=line["sample"],
        token_ids=token_ids.values.to_numpy().copy(),
        logps=logps.values.to_numpy().copy(),
        finish=FinishReason(line["finish"]),
        weight_version=line["weight_version"],
        text=line["text"],
    )


def _verdict(line: Line) -> Verdict:
    return Verdict(line["score"], Outcome(line["outcome"]), line["extracted"], line["detail"])


def _decision(line: Line) -> Decision:
    return Decision(
        rollout_weight=line["rollout_weight"],
        demo_weight=line["demo_weight"],
        num_solved=line["num_solved"],
        num_rollouts=line["num_rollouts"],
        reason=line["reason"],
    )
