"""The folder of an evaluation while it runs: what was sampled so far survives a kill at any moment.

    identity.json    what decides a response: model, sampling, template, reward function, prompts
    samples.jsonl    one line per graded response, in the order they came in
    config.yaml, logs/, and at the end prompts.parquet and results.json (see `results`)

Opening it again counts the whole lines of samples.jsonl and removes an unfinished last one; what is there is
not sampled again. More samples or more benchmarks may be asked for later; everything else that decides a
response must be the same. Counts are kept in memory, texts are not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import write_json
from hpt_ray.types import Prompt, RewardResult, Rollout
from hpt_ray.utils.lock import try_lock

Key = tuple[str, str]  # benchmark, prompt id


@dataclass(slots=True)
class Tally:
    """What the responses to one prompt came to. `done[s]`: sample s was graded."""

    done: np.ndarray  # [n] bool
    outcomes: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    num_truncated: int = 0

    def count(self, line: Mapping[str, Any]) -> None:
        """Count a line of the journal. A sample beyond those asked for, or counted before, changes nothing."""
        sample = line["sample"]
        if sample >= len(self.done) or self.done[sample]:
            return
        self.done[sample] = True
        self.outcomes[line["outcome"]] += 1
        self.num_tokens += line["tokens"]
        self.num_truncated += line["truncated"]


class Journal:
    """An open folder; one process at a time holds it."""

    def __init__(self, folder: Path, identity: dict[str, Any], num_samples: Mapping[Key, int]) -> None:
        """Open `folder`, new or from before, for `num_samples` responses to each prompt.

        Raises UserError where another process evaluates into it, or where it holds responses that were
        sampled or graded otherwise than `identity` says.
        """
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            self._file = (folder / "samples.jsonl").open("a+b")
        except OSError as error:
            raise UserError(f"Cannot write to {folder}: {error}. Name another folder with out=…") from error
        if not try_lock(self._file):
            raise UserError(f"Another evaluation is writing to {folder}. Wait for it, or use out=OTHER.")
        _agree(folder, identity)
        self.folder = folder
        self.tallies = {key: Tally(np.zeros(n, bool)) for key, n in num_samples.items()}
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for raw in self._file:
            if not raw.endswith(b"\n"):
                break
            end += len(raw)
            line = json.loads(raw)
            if tally := self.tallies.get((line["benchmark"], line["id"])):
                tally.count(line)
        self._file.truncate(end)

    def add(
        self,
        benchmark: str,
        prompt: Prompt,
        sample: int,
        rollout: Rollout,
        result: RewardResult,
        *,
        keep_text: bool,
    ) -> None:
        """Write one graded response and count it. With its text goes what a row to train on needs."""
        line: dict[str, Any] = {
            "benchmark": benchmark,
            "id": prompt.id,
            "sample": sample,
            "outcome": result.outcome.value,
            "tokens": len(rollout.token_ids),
            "truncated": rollout.truncated,
        }
        if keep_text:
            line |= {"extracted": result.extracted, "text": rollout.text}
            line |= {"prompt": prompt.source or prompt.text, "ground_truth": prompt.ground_truth}
            line |= {"data_source": prompt.data_source, "extra": prompt.extra}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.tallies[benchmark, prompt.id].count(line)

    def missing(self, keys: Sequence[Key]) -> Iterator[tuple[int, int]]:
        """(position in `keys`, sample) of every response that is still to be sampled."""
        for position, key in enumerate(keys):
            for sample in np.flatnonzero(~self.tallies[key].done):
                yield position, int(sample)

    @property
    def num_missing(self) -> int:
        return sum(int((~tally.done).sum()) for tally in self.tallies.values())

    @property
    def num_done(self) -> int:
        return sum(int(tally.done.sum()) for tally in self.tallies.values())

    def close(self) -> None:
        self._file.close()


def _agree(folder: Path, identity: dict[str, Any]) -> None:
    """Compare `identity` with that of the responses already there, and add the benchmarks that are new."""
    path = folder / "identity.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := [f"\n  {line}" for line in _differences(before, identity)]:
            raise UserError(
                f"{folder} holds responses of another evaluation:{''.join(differing)}\n"
                "Name another folder with out=…, or remove this one."
            )
        identity = {**identity, "benchmarks": {**before["benchmarks"], **identity["benchmarks"]}}
    write_json(path, identity)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in now:
        if prefix == "benchmarks." and name not in before:
            continue
        old, new = before.get(name), now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {old!r} then, {new!r} now"
