"""Graded groups as parquet: one line per rollout, with result and decision, in the order of training.

`rollouts/step-000012.parquet` holds all that training on the step needs but the prompts, which come from
the data by their id: token ids and log-probs as sampled, scores, the gate's weights. So a step can be looked
at, graded again, or replayed. A prompt without rollouts has one line whose `sample` is null. Checkpoints
hold groups that no gate has seen yet in the same form, without a step and a decision. Texts are for people.
`rollouts/eval-000012.parquet` holds the responses of the evaluation after the step, set by set.

A file is written aside and renamed, so one that is there is whole.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpt_ray.config import renamed
from hpt_ray.errors import UserError
from hpt_ray.observe.metrics import branch_of
from hpt_ray.text import storable
from hpt_ray.types import Decision, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("group", pa.int32()),  # 0, 1, … in the order in which the step's prompts were trained on
        ("prompt_id", pa.string()),
        ("data_source", pa.string()),
        ("prompt", pa.string()),
        ("reference", pa.string()),  # the ground truth; numbers and lists as JSON
        ("demonstration", pa.string()),
        ("request_id", pa.string()),  # `prompt_id`, or `prompt_id#2` where the step has it twice
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("prefix_length", pa.int32()),  # how many of the tokens are a prefix of the demonstration
        ("superseded", pa.bool_()),  # the prompt was drawn again, with a prefix: it trained nothing
        ("finish", pa.string()),
        ("weight_version", pa.int32()),
        ("score", pa.float64()),
        ("outcome", pa.string()),
        ("extracted", pa.string()),
        ("detail", pa.string()),
        ("branch", pa.string()),
        ("reason", pa.string()),
        ("num_correct", pa.int32()),
        ("num_rollouts", pa.int32()),
        ("rollout_weight", pa.float64()),  # α
        ("demo_weight", pa.float64()),  # β
        ("advantage", pa.float64()),  # null where it trained nothing, or the learner alone knows it
        # JSON of what a reward function may ask for: prompt, ground_truth, extra
        ("prompt_row", pa.string()),
    ]
)
FOR_PEOPLE = {"demonstration", "advantage", "prompt_row"}  # not needed to make the groups again
SINCE_0_2 = {"prefix_length", "superseded"}  # older files lack them: no rollout has a prefix there

Line = dict[str, Any]
Pair = tuple[Group, Decision | None]


def dump_of(folder: Path, step: int, kind: str = "step") -> Path:
    """`kind`: `step` for what was trained on, `eval` for the evaluation after the step."""
    return folder / f"{kind}-{step:06d}.parquet"


def write_rollouts(
    folder: Path,
    step: int,
    pairs: Sequence[tuple[Group, Decision]],
    advantages: Sequence[Sequence[float | None]] | None = None,
) -> Path:
    """Write the groups of `step`, in the order in which they were trained on, and return the file.

    `advantages`: of the rollouts of each group.
    """
    return _write(dump_of(folder, step), step, pairs, advantages)


def write_evaluation(folder: Path, step: int, groups: Sequence[Group]) -> Path:
    """Write the responses of the evaluation after `step`; the ids of their requests are `SET#NUMBER`."""
    return _write(dump_of(folder, step, "eval"), step, [(group, None) for group in groups])


def write_groups(path: Path, groups: Sequence[Group]) -> Path:
    """Write groups that no gate has decided on."""
    return _write(path, None, [(group, None) for group in groups])


def read_rollouts(path: Path) -> list[Line]:
    """The lines of one file as dicts, by the names of `SCHEMA`."""
    return read_columns(path).to_pylist()


def read_columns(path: Path, names: Sequence[str] = SCHEMA.names) -> pa.Table:
    """Those of the columns that the file has, under today's names."""
    with pq.ParquetFile(path) as file:
        found = {renamed.FIELDS.get(name, name): name for name in file.schema_arrow.names}
        names = [name for name in names if name in found]
        stored = [found[name] for name in names]
        return file.read(columns=stored).select(stored).rename_columns(list(names))


def read_pairs(path: Path, prompts: Mapping[str, Prompt]) -> list[tuple[Group, Decision]]:
    """The groups of a step and their decisions, in the order in which they were trained on.

    Raises `UserError` where a prompt is not among `prompts`, or the file is of an older version.
    """
    return [(group, _decision(line)) for group, line in _read(path, prompts)]


def read_groups(path: Path, prompts: Mapping[str, Prompt]) -> list[Group]:
    """The groups that `write_groups` was given, in their order. Raises `UserError` as `read_pairs` does."""
    return [group for group, _ in _read(path, prompts)]


def ids_of_prompts(path: Path) -> set[str]:
    """The ids of all prompts in a file."""
    return set(read_columns(path, ["prompt_id"])["prompt_id"].to_pylist())


# -- writing ---------------------------------------------------------------------------------------


def _write(
    path: Path,
    step: int | None,
    pairs: Sequence[Pair],
    advantages: Sequence[Sequence[float | None]] | None = None,
) -> Path:
    lines = [
        {"step": step, "group": i, **shared, **line, "advantage": advantage}
        for i, (group, decision) in enumerate(pairs)
        for shared in [_prompt_fields(group) | _decision_fields(decision)]
        for line, advantage in zip_longest(_rollout_fields(group), advantages[i] if advantages else ())
    ]
    columns = []
    for field in SCHEMA:
        values = [line.get(field.name) for line in lines]
        if pa.types.is_list(field.type):
            columns.append(_lists(values, field.type.value_type))
        elif pa.types.is_string(field.type):
            columns.append(pa.array([value and storable(value) for value in values], field.type))
        else:
            columns.append(pa.array(values, field.type))
    aside = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), aside, compression="zstd")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _lists(arrays: Sequence[np.ndarray | None], kind: pa.DataType) -> pa.ListArray:
    """A column of arrays, laid end to end rather than value by value; None is null."""
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    values = np.concatenate([np.zeros(0, kind.to_pandas_dtype()), *(a for a in arrays if a is not None)])
    mask = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(values, kind), mask=mask)


def _prompt_fields(group: Group) -> Line:
    prompt, truth = group.prompt, group.prompt.ground_truth
    return {
        "prompt_id": prompt.id,
        "data_source": prompt.data_source,
        "prompt": prompt.text,
        "reference": truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False),
        "demonstration": group.prompt.demonstration and group.prompt.demonstration.text,
        "prompt_row": json.dumps(
            {
                "prompt": prompt.source or prompt.text,
                "ground_truth": truth,
                "extra": prompt.extra,
                "opening": prompt.opening,
            }
        ),
    }


def _rollout_fields(group: Group) -> list[Line]:
    """One line per rollout; one empty line for a prompt without rollouts."""
    return [
        {
            "request_id": rollout.prompt_id,
            "sample": rollout.sample,
            "text": rollout.text,
            "token_ids": rollout.token_ids,
            "logprobs": rollout.logprobs,
            "prefix_length": rollout.prefix_length,
            "superseded": rollout.superseded,
            "finish": rollout.finish.value,
            "weight_version": rollout.weight_version,
            "score": result.score,
            "outcome": result.outcome.value,
            "extracted": result.extracted,
            "detail": result.detail,
        }
        for rollout, result in group.pairs
    ] or [{}]


def _decision_fields(decision: Decision | None) -> Line:
    return {"branch": branch_of(decision), **asdict(decision)} if decision else {}


# -- reading ---------------------------------------------------------------------------------------


def _read(path: Path, prompts: Mapping[str, Prompt]) -> list[tuple[Group, Line]]:
    """Each group with its first line."""
    table = read_columns(path)
    absent = set(SCHEMA.names) - set(table.column_names) - FOR_PEOPLE - SINCE_0_2
    if absent:
        raise UserError(
            f"{path} was written by an older version of hpt_ray: it lacks {', '.join(sorted(absent))}, so "
            "its groups cannot be made again."
        )
    token_ids, logprobs = (table[name].combine_chunks() for name in ("token_ids", "logprobs"))
    lines = table.drop_columns(["token_ids", "logprobs"]).to_pylist()
    pairs = []
    for _, run in itertools.groupby(range(len(lines)), key=lambda i: lines[i]["group"]):
        numbers = list(run)
        first = lines[numbers[0]]
        prompt = prompts.get(first["prompt_id"])
        if prompt is None:
            raise UserError(
                f"{path}: prompt {first['prompt_id']} is not in the data. Use the data.train, template "
                "and limits that the run was made with."
            )
        sampled = [i for i in numbers if lines[i]["sample"] is not None]
        rollouts = [_rollout(lines[i], token_ids[i], logprobs[i]) for i in sampled]
        results = [_result(lines[i]) for i in sampled]
        pairs.append((Group(prompt, rollouts, results), first))
    return pairs


def _rollout(line: Line, token_ids: pa.ListScalar, logprobs: pa.ListScalar) -> Rollout:
    return Rollout(
        prompt_id=line["request_id"],
        sample=line["sample"],
        token_ids=token_ids.values.to_numpy().copy(),
        logprobs=logprobs.values.to_numpy().copy(),
        finish=FinishReason(line["finish"]),
        weight_version=line["weight_version"],
        text=line["text"],
        prefix_length=line.get("prefix_length") or 0,
        superseded=bool(line.get("superseded")),
    )


def _result(line: Line) -> RewardResult:
    return RewardResult(line["score"], Outcome(line["outcome"]), line["extracted"], line["detail"])


def _decision(line: Line) -> Decision:
    return Decision(**{field.name: line[field.name] for field in fields(Decision)})
