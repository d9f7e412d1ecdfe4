"""A set of prompts on disk: tokenised once, drawn one by one, never in memory as a whole.

`load_prompts` sends the source files through `intake` in one pass and writes the result to a
memory-mapped Arrow file in the cache; `PromptSet[i]` reads one prompt of it. Which rows are
dropped, and why, is said there and counted here.

Costs: about 4 bytes per token plus the texts on disk, and one pass of the tokenizer on first use. In
memory: during that pass a batch of rows, a few pages of the file (parquet writers put about a thousand
rows on a page) and one hash per prompt; afterwards what a draw copies.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from hpt_ray.data.dropped import in_words, readings
from hpt_ray.data.files import list_files
from hpt_ray.data.intake import SCHEMA, Demonstrations, Intake, Needs, Tally
from hpt_ray.data.mini import is_mini, resolve
from hpt_ray.data.shapes import check_columns
from hpt_ray.data.template import Template
from hpt_ray.errors import UserError
from hpt_ray.types import Demonstration, Prompt
from hpt_ray.utils.cache import cache_dir, cached_folder

VERSION = 4  # goes up with every change of what is stored


class PromptSet:
    """Prompts of one or more files, by position in file order. Reads from disk, holds no texts."""

    def __init__(self, folder: Path) -> None:
        self.tally = Tally(**json.loads((folder / "tally.json").read_text(encoding="utf-8")))
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "prompts.arrow")))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]  # mapped, not loaded
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self.tally.kept

    def __getitem__(self, i: int) -> Prompt:
        if not 0 <= i < len(self):
            raise IndexError(f"prompt {i} of {len(self)}")
        batch_index = bisect_right(self._ends, i)
        batch = self._batches[batch_index]
        row = i - self._ends[batch_index] + batch.num_rows

        def ids(column: str) -> np.ndarray:
            return batch.column(column)[row].values.to_numpy().copy()

        text = batch.column("demonstration")[row].as_py()
        return Prompt(
            id=batch.column("id")[row].as_py(),
            token_ids=ids("prompt_ids"),
            text=batch.column("prompt")[row].as_py(),
            ground_truth=json.loads(batch.column("ground_truth")[row].as_py()),
            data_source=batch.column("data_source")[row].as_py(),
            demonstration=None if text is None else Demonstration(ids("demonstration_ids"), text),
            extra=json.loads(batch.column("extra")[row].as_py()),
            source=json.loads(batch.column("source")[row].as_py()),
        )

    def __iter__(self) -> Iterator[Prompt]:
        return map(self.__getitem__, range(len(self)))

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows dropped, by reason."""
        return dict(self.tally.dropped)

    @property
    def read_as(self) -> list[str]:
        """One line for every way in which a file is read: `train.jsonl: read as Alpaca: prompt ← instruction, …`."""
        return readings(self.tally)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of every prompt, and of every demonstration that there is. Reads no text and no token."""
        prompts, demonstrations = (
            pa.chunked_array(
                [batch.column(name).value_lengths() for batch in self._batches], pa.int32()
            ).drop_null()
            for name in ("prompt_ids", "demonstration_ids")
        )
        return prompts.to_numpy(), demonstrations.to_numpy()

    def sample(self, most: int) -> list[Prompt]:
        """At most so many prompts, spread evenly over the set: those with a demonstration, where any has one.

        The first of every data source is among them, as far as there is room.
        """
        sources = pa.chunked_array([batch.column("data_source").fill_null("") for batch in self._batches])
        source = np.unique(sources.to_numpy(), return_inverse=True)[1]
        lacking = np.concatenate(
            [
                batch.column("demonstration_ids").is_null().to_numpy(zero_copy_only=False)
                for batch in self._batches
            ]
        )
        order = np.lexsort((lacking, source))
        firsts = order[np.unique(source[order], return_index=True)[1]]
        usable = order if lacking.all() else order[~lacking[order]]
        spread = usable[np.linspace(0, len(usable) - 1, min(most, len(usable))).round().astype(int)]
        return [self[i] for i in sorted([*dict.fromkeys(np.concatenate([firsts, spread]).tolist())][:most])]

    def report(self) -> dict[str, int | float]:
        """The counts for the table at the start and for the run's summary, in reading order."""
        tally = self.tally
        return {
            "rows": tally.rows,
            "kept": tally.kept,
            **{f"dropped/{reason}": count for reason, count in sorted(tally.dropped.items())},
            "demonstrations": tally.demonstrations,
            **{
                f"demonstrations_left_out/{reason}": count
                for reason, count in sorted(tally.demonstrations_left_out.items())
            },
            "prompt_tokens_mean": tally.prompt_tokens / max(tally.kept, 1),
            "prompt_tokens_max": tally.prompt_tokens_max,
            "demonstration_tokens_mean": tally.demonstration_tokens / max(tally.demonstrations, 1),
            "demonstration_tokens_max": tally.demonstration_tokens_max,
        }


def load_prompts(
    paths: Sequence[str],
    template: Template,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    demonstrations: Demonstrations,
    needs_ground_truth: bool = True,
    columns: Mapping[str, str] | None = None,
    held_out: bool = False,
    objects: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> PromptSet:
    """The prompts of files, folders of files, or names `mini:…`, in the order given.

    What is asked of them is said in `intake.Needs`; `columns` are those of `data.columns`.

    The first call with these files, this template and these limits tokenises everything, calling
    `on_progress(rows_done)` now and then; later calls open what is in the cache. A changed file is
    noticed by its size and time. Raises UserError for files that cannot be used, and for a set in
    which nothing is left.
    """
    if not paths:
        raise UserError("No prompt file is given. Name one or more in data.train.")
    needs = Needs(demonstrations, needs_ground_truth, columns or {}, held_out, objects)
    check_columns(needs.columns)
    split = "test" if held_out else "train"
    files = [
        file for path in paths for file in list_files(resolve(path) if is_mini(path) else path, split=split)
    ]
    intake = Intake(template, max_prompt_tokens, max_response_tokens, needs)

    def build(folder: Path) -> None:
        with pa.ipc.new_file(str(folder / "prompts.arrow"), SCHEMA) as writer:
            for batch in intake.record_batches(files):
                writer.write_batch(batch)
                if on_progress:
                    on_progress(intake.tally.rows)
        (folder / "tally.json").write_text(json.dumps(asdict(intake.tally)), encoding="utf-8")

    versions = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = json.dumps(
        [VERSION, versions, template.fingerprint, max_prompt_tokens, max_response_tokens, asdict(needs)]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    prompts = PromptSet(cached_folder(cache_dir() / "prompts" / name, build))
    if not len(prompts):
        counts = [f"{count} {reason}" for reason, count in prompts.dropped.items()] or ["the files are empty"]
        why = in_words(prompts.dropped, prompts.tally, max_prompt_tokens, max_response_tokens)
        raise UserError(f"{', '.join(paths)}: no prompt is left ({', '.join(counts)}). {why}".rstrip())
    return prompts
