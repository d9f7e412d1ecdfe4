"""prompts.parquet: one row per prompt, in a fixed order, whatever order the responses came in.

The counts say everything that mean@k, pass@k and a comparison need. `reference_hash` tells whether two files
speak of the same prompt; neither the prompt nor its reference is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpt_ray.config import renamed
from hpt_ray.errors import UserError
from hpt_ray.evaluation.journal import Tally
from hpt_ray.types import Outcome, Prompt

PROMPTS = "prompts.parquet"


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What came of one prompt. The six outcomes add up to `n`."""

    benchmark: str
    prompt_id: str
    data_source: str
    level: str | None  # how difficult the data says it is
    reference_hash: str
    n: int
    correct: int
    wrong: int
    no_answer: int
    unparsable: int
    timeout: int
    error: int
    mean_tokens: float
    truncated: int

    @property
    def solved(self) -> bool:
        """At least half of the responses are correct; with one response: it is correct."""
        return 2 * self.correct >= self.n


_TYPES = {"str": pa.string(), "str | None": pa.string(), "int": pa.int32(), "float": pa.float64()}
SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(PromptResult)])


def result_of(benchmark: str, prompt: Prompt, level: str, tally: Tally) -> PromptResult:
    """The row of a prompt of which every sample was graded. `level`: a field of the prompt's extra."""
    n = len(tally.done)
    difficulty, text = prompt.extra.get(level), json.dumps([prompt.id, prompt.ground_truth])
    return PromptResult(
        benchmark=benchmark,
        prompt_id=prompt.id,
        data_source=prompt.data_source,
        level=None if difficulty is None else str(difficulty),
        reference_hash=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
        n=n,
        **{outcome.value: tally.outcomes[outcome.value] for outcome in Outcome},
        mean_tokens=tally.num_tokens / n,
        truncated=tally.num_truncated,
    )


def write_results(folder: Path, results: Sequence[PromptResult]) -> Path:
    """Write prompts.parquet, whole or not at all."""
    path = folder / PROMPTS
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in results], schema=SCHEMA), aside)
    aside.replace(path)
    return path


def read_results(path: Path) -> list[PromptResult]:
    """The rows of a result file, or of the folder that holds one. Raises UserError where there is none."""
    file = renamed.existing(path / PROMPTS) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no result file. Give the folder of a finished evaluation.")
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read as parquet ({error}).") from error
    table = table.rename_columns([renamed.FIELDS.get(name, name) for name in table.schema.names])
    if table.schema.names != SCHEMA.names:
        raise UserError(
            f"{file}: no result file of hpt_ray.cli.evaluate (its columns are {table.schema.names})."
        )
    return [PromptResult(**row) for row in table.to_pylist()]
