"""Whatever comes in, in whatever portions: every sample leaves once, in micro-batches that fit, round by round."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpt_ray.learner.packing import Packer, WeightedSample, dummy_micro_batch
from hpt_ray.types import MicroBatch, Sample

BUDGET = 16
PROMPTS = st.lists(
    st.lists(st.tuples(st.integers(1, BUDGET // 2), st.integers(1, BUDGET // 2)), max_size=6), max_size=8
)


def weighed(number: int, prompt: int, response: int) -> WeightedSample:
    """A sample that can be told apart by its group, its tokens and its scale."""
    tokens = np.full(prompt + response, number, np.int32)
    sample = Sample(str(number), tokens, prompt, np.full(response, -number, np.float32), False, 1.0, number)
    return WeightedSample(sample, np.full((1, response), number), np.array([number]))


def samples_of(micro_batch: MicroBatch) -> list[tuple[int, int, int]]:
    """(number, prompt, response) of every sample, checked against all its arrays."""
    found = []
    token_ends, response_ends = np.cumsum(micro_batch.sample_lengths), np.cumsum(micro_batch.response_lengths)
    for i, number in enumerate(micro_batch.group_ids):
        length, response = int(micro_batch.sample_lengths[i]), int(micro_batch.response_lengths[i])
        tokens = slice(token_ends[i] - length, token_ends[i])
        responses = slice(response_ends[i] - response, response_ends[i])
        assert (micro_batch.token_ids[tokens] == number).all()
        assert (micro_batch.position_ids[tokens] == np.arange(length)).all()
        assert (micro_batch.old_logprobs[responses] == -number).all()
        assert (micro_batch.advantages[0, responses] == number).all()
        assert micro_batch.scales[0, i] == number
        found.append((int(number), length - response, response))
    assert token_ends[-1] == len(micro_batch.token_ids)
    assert response_ends[-1] == len(micro_batch.old_logprobs) == micro_batch.advantages.shape[1]
    return found


@given(prompts=PROMPTS, num_bins=st.integers(1, 4), sharing=st.integers(1, 3), num_updates=st.integers(1, 2))
def test_every_sample_leaves_once_in_micro_batches_that_fit(prompts, num_bins, sharing, num_updates):
    packer = Packer(
        num_ranks=num_bins * sharing,
        max_tokens_per_micro_batch=BUDGET,
        dummy=dummy_micro_batch(1),
        sequence_parallel=sharing,
    )

    def distinct(rounds: Iterator[list[MicroBatch]]) -> Iterator[list[MicroBatch]]:
        """Each micro-batch once, of those that ranks in a row share."""
        for micro_batches in rounds:
            teams = [micro_batches[i : i + sharing] for i in range(0, len(micro_batches), sharing)]
            assert all(mine is first for first, *others in teams for mine in others)
            yield [first for first, *_ in teams]

    for _ in range(num_updates):
        expected: list[tuple[int, int, int]] = []
        rounds: list[list[MicroBatch]] = []
        for prompt in prompts:
            samples = [(len(expected) + i + 1, *shape) for i, shape in enumerate(prompt)]
            expected += samples
            packer.add([weighed(*sample) for sample in samples])
            rounds += distinct(packer.full_rounds())
            waiting = sum(prompt + response for _, prompt, response in expected) - tokens_of(rounds)
            assert waiting < num_bins * BUDGET
        rounds += distinct(packer.last_rounds())
        assert rounds
        assert all(len(micro_batches) == num_bins for micro_batches in rounds)
        assert all(
            micro_batch.num_tokens <= BUDGET for micro_batches in rounds for micro_batch in micro_batches
        )
        got = [
            sample
            for micro_batches in rounds
            for micro_batch in micro_batches
            if not micro_batch.is_dummy
            for sample in samples_of(micro_batch)
        ]
        assert Counter(got) == Counter(expected)
        if expected:
            assert all(
                any(not micro_batch.is_dummy for micro_batch in micro_batches) for micro_batches in rounds
            )


def tokens_of(rounds: list[list[MicroBatch]]) -> int:
    return sum(
        micro_batch.num_tokens
        for micro_batches in rounds
        for micro_batch in micro_batches
        if not micro_batch.is_dummy
    )
