"""What a rollout worker is asked for, and how its seeds are drawn. Plain records, no vLLM."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. `temperature` 0 is greedy; `stop_token_ids` end a turn and stay in it."""

    temperature: float
    top_p: float
    top_k: int  # −1: all
    max_tokens: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """The samples of one prompt that one worker is to draw: sample number and seed of each.

    `prompt_id` is unique among the requests of one call: see `unique_ids`. `expected_tokens` is the likely
    length of a response, by which work is balanced; only its ratio to that of other requests matters.
    The last `num_held` samples are drawn only when somebody says that they are needed. With a `prefix` they continue
    it: it is the beginning of every response, and counts in `Sampling.max_tokens`.
    """

    prompt_id: str
    prompt_ids: np.ndarray  # [P] int32
    samples: tuple[int, ...]
    seeds: tuple[int, ...]
    expected_tokens: float = 1.0
    num_held: int = 0
    prefix: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [k] int32

    def part(self, first: int, last: int) -> GenerateRequest:
        """The request for samples number `first` to `last` − 1, none of them held."""
        samples, seeds = self.samples[first:last], self.seeds[first:last]
        return replace(self, samples=samples, seeds=seeds, num_held=0)

    def continuing(self, prefix: np.ndarray) -> GenerateRequest:
        """The same for responses that begin with `prefix`."""
        return replace(self, prefix=prefix, expected_tokens=max(1.0, self.expected_tokens - len(prefix)))


def sampling_seed(run_seed: int, step: int | str, prompt_id: str, sample: int) -> int:
    """The seed of one rollout: a function of what is asked for, not of who answers or when.

    What is generated again after a failure is therefore what would have been generated. Seeds of
    neighbouring samples are far apart, since vLLM derives further seeds by counting up.
    """
    text = f"{run_seed}/{step}/{prompt_id}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 33


def unique_ids(prompt_ids: Sequence[str]) -> list[str]:
    """The ids of a batch, told apart where a batch that spans two epochs holds a prompt twice.

    Example: `unique_ids(["a", "b", "a"]) == ["a", "b", "a#2"]`.
    """
    seen: Counter[str] = Counter()
    unique = []
    for prompt_id in prompt_ids:
        seen[prompt_id] += 1
        unique.append(prompt_id if seen[prompt_id] == 1 else f"{prompt_id}#{seen[prompt_id]}")
    return unique


def request_for(
    prompt_id: str,
    prompt_ids: np.ndarray,
    *,
    num_samples: int,
    run_seed: int,
    step: int | str,
    expected_tokens: float = 1.0,
    num_held: int = 0,
    first_sample: int = 0,
) -> GenerateRequest:
    samples = tuple(range(first_sample, first_sample + num_samples))
    seeds = tuple(sampling_seed(run_seed, step, prompt_id, sample) for sample in samples)
    return GenerateRequest(prompt_id, prompt_ids, samples, seeds, expected_tokens, num_held)
