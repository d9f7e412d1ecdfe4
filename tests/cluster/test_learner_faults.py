"""The learner where something is out of order: numbers that are not finite, sums in bfloat16, other ranks, new ranks.

Real ranks, DeepSpeed on gloo. What must not change is compared bit for bit.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from pair import DEMONSTRATIONS, ZERO, Pair, hpt_loss, starting
from plain import distance, make_samples, norm
from probe import LIMIT_S, call, micro_batch_of
from ray.exceptions import RayTaskError

from hpt_ray.algorithms import make_estimator
from hpt_ray.checkpoint.replicas import Replicas
from hpt_ray.checkpoint.state import RunState
from hpt_ray.types import Sample

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

FEW = [((1, 0), False), ((), True), ((0, 1), True)]


@pytest.fixture(scope="module")
def start(ray_cluster, tiny_model):
    with starting(tiny_model) as start:
        yield start


def parameters(pair: Pair) -> list[dict[str, np.ndarray]]:
    """Of each rank."""
    return call(pair.ranks, "parameters")


def same(mine: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> bool:
    return all(distance(a, b) == 0 for a, b in zip(mine, theirs, strict=True))


# -- updates that are skipped ----------------------------------------------------------------------


def weighted(prompts: list[list[Sample]], weight: float) -> list[list[Sample]]:
    """The same samples; the first demonstration weighs something else."""
    next(sample for samples in prompts for sample in samples if sample.is_demo).weight = weight
    return prompts


@pytest.mark.parametrize(
    ("stage", "offload", "dtype"),
    [(*zero, "float32") for zero in ZERO] + [(stage, False, "bfloat16") for stage in (0, 1, 3)],
)
def test_a_skipped_update_leaves_no_trace(start, stage, offload, dtype):
    """One sample of one rank is poisoned, with infinity or with a weight that is much too large."""

    def train(with_faults: bool) -> list[dict[str, np.ndarray]]:
        pair = start(2, stage, offload_optimizer=offload, dtype=dtype, skip_grad_norm=100.0)
        first, poisoned, large, second = (make_samples(pair.plain, FEW, seed=seed) for seed in range(30, 34))
        assert pair.learn(first).skipped is None
        before = parameters(pair)
        if with_faults:
            result = pair.learn(weighted(poisoned, math.inf))
            assert result.skipped == "not_finite"
            assert not math.isfinite(result.metrics["optim/grad_norm"])
            assert same(parameters(pair), before)
            result = pair.learn(weighted(large, 1e4))
            assert result.skipped == "grad_norm"
            assert 100 < result.metrics["optim/grad_norm"] < math.inf
            assert same(parameters(pair), before)
        result = pair.learn(second)
        assert result.skipped is None
        assert 0 < result.metrics["optim/grad_norm"] < 100
        after = parameters(pair)
        assert distance(after[0], before[0]) > 0
        return after

    assert same(train(with_faults=True), train(with_faults=False))


def test_a_loss_that_is_not_finite_is_enough(start):
    """A reference that gives a token no probability: the loss is infinite, its gradient is not."""
    pair = start(2, 1)
    samples = make_samples(pair.plain, [((1, 0), False)], seed=35)[0]
    call(pair.ranks, "use", make_estimator("dr_grpo", kl_coef=0.1, kl_estimator="k1"))
    micro_batch = micro_batch_of(samples)
    micro_batch.kl_scales[:] = 1.0
    no_chance = np.full(len(micro_batch.old_logprobs), -np.inf, np.float32)
    fine = np.zeros_like(no_chance)
    before = parameters(pair)
    refs = pair.ranks.send_each("accumulate", [(micro_batch, (fine, fine)), (micro_batch, (no_chance, fine))])
    asyncio.run(pair.ranks.wait(refs, "accumulate", LIMIT_S))
    reports = call(pair.ranks, "step", 1e-3)
    assert [report.skipped for report in reports] == ["not_finite", "not_finite"]
    assert 0 < reports[0].grad_norm < math.inf
    assert same(parameters(pair), before)


def test_a_pass_that_fails_is_raised_while_other_things_are_waited_for(start):
    """A token that the model does not have; no further prompt comes in, and nobody says that this was the last."""
    pair = start(2, 1)
    broken, *others = make_samples(pair.plain, [((1, 0), False)] * 40, seed=36)
    for sample in broken:
        sample.token_ids = sample.token_ids + 10**6
    learner = pair.group()

    async def wait() -> None:
        for samples in (broken, *others):
            learner.add(samples)
        async with pair.ranks.watched(learner.raise_failures):
            await asyncio.sleep(LIMIT_S)

    with pytest.raises(RayTaskError, match="index out of range"):
        asyncio.run(wait())


# -- sums in bfloat16 ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_error_in_bfloat16_does_not_grow_with_the_number_of_micro_batches(start, stage):
    pair = start(2, stage, dtype="bfloat16")

    def gradient(prompts: list[list[Sample]], max_tokens_per_micro_batch: int) -> dict[str, np.ndarray]:
        pair.learn(prompts, rate=0.0, max_tokens_per_micro_batch=max_tokens_per_micro_batch)
        return call(pair.ranks, "gradient")[0]

    # 64 times the same sample, a micro-batch each: the sum is known.
    sample = make_samples(pair.plain, [((), True)], seed=36)[0][0]
    once = gradient([[sample]], len(sample.token_ids))
    exact = {name: 64 * part for name, part in once.items()}
    assert 0 < norm(once) < math.inf
    assert distance(gradient([[sample]] * 64, len(sample.token_ids)), exact) < 1e-6 * norm(exact)

    # Samples that differ, in one micro-batch a rank or in 16, against float64.
    pair.plain.set_parameters(parameters(pair)[0])
    prompts = make_samples(pair.plain, DEMONSTRATIONS * 8, seed=37)
    samples = [sample for samples in prompts for sample in samples]
    exact, _ = pair.plain.gradient(hpt_loss(pair.plain, samples))
    one, many = (distance(gradient(prompts, tokens), exact) for tokens in (4096, 40))
    assert many < 1.1 * one


def test_sums_in_bfloat16_can_be_asked_for(start):
    """Half the memory, and the error that the test above looks for."""
    pair = start(2, 2, dtype="bfloat16", deepspeed={"data_types": {"grad_accum_dtype": "bf16"}})
    sample = make_samples(pair.plain, [((), True)], seed=36)[0][0]
    gradients = []
    for copies in (1, 64):
        pair.learn([[sample]] * copies, rate=0.0, max_tokens_per_micro_batch=len(sample.token_ids))
        gradients.append(call(pair.ranks, "gradient")[0])
    exact = {name: 64 * part for name, part in gradients[0].items()}
    assert distance(gradients[1], exact) > 1e-3 * norm(exact)


# -- checkpoints of other ranks --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "num_ranks", "next_stage", "offload"),
    [
        (0, 3, 0, False),
        (1, 1, 2, False),
        (1, 3, 1, True),
        (2, 1, 2, False),
        (2, 3, 1, False),
        (3, 1, 3, True),
        (3, 3, 3, False),
    ],
)
def test_another_number_of_ranks_goes_on(start, tmp_path: Path, stage, num_ranks, next_stage, offload):
    two = start(2, stage, offload_optimizer=offload)
    for seed in (38, 39):
        two.learn(make_samples(two.plain, FEW, seed=seed))
    call(two.ranks, "save", str(tmp_path))
    files = sorted(tmp_path.iterdir())
    later = [make_samples(two.plain, FEW, seed=seed) for seed in (40, 41)]
    norms = [two.learn(samples).metrics["optim/grad_norm"] for samples in later]
    expected = parameters(two)[0]

    others = start(num_ranks, next_stage, offload_optimizer=offload)
    call(others.ranks, "load", str(tmp_path))
    assert sorted(tmp_path.iterdir()) == files
    numbers = call(others.ranks, "random_number")
    assert numbers[2:] != numbers[:1]  # a rank that was not there has a seed of its own
    for samples, grad_norm in zip(later, norms, strict=True):
        assert others.learn(samples).metrics["optim/grad_norm"] == pytest.approx(grad_norm, rel=1e-6, abs=0)
    assert distance(parameters(others)[0], expected) < 1e-6 * norm(expected)

    # And what they save is theirs.
    (tmp_path / "again").mkdir()
    before = parameters(others)
    call(others.ranks, "save", str(tmp_path / "again"))
    others.learn(later[0])
    call(others.ranks, "load", str(tmp_path / "again"))
    assert same(parameters(others), before)


@pytest.mark.parametrize(
    ("stage", "offload", "dtype"),
    [(*zero, "float32") for zero in ZERO] + [(stage, False, "bfloat16") for stage in (0, 1, 3)],
)
def test_new_ranks_go_on_from_a_copy_in_memory(start, tmp_path: Path, stage, offload, dtype):
    pair = start(2, stage, offload_optimizer=offload, dtype=dtype)
    before, after = (make_samples(pair.plain, FEW, seed=seed) for seed in (42, 43))
    pair.learn(before)
    call(pair.ranks, "cut_pieces", 10_000)
    replicas = Replicas(timeout_s=LIMIT_S)
    state = RunState(step=1, version=1, sampler={}, history={"prompt": 1.0})

    async def copy() -> tuple[RunState, Path] | None:
        replicas.begin([pair.ranks], state, TemporaryDirectory(dir=tmp_path))
        state.history["prompt"] = 2.0  # the run goes on
        return await replicas.newest()

    try:
        found = asyncio.run(copy())
        assert replicas.problems == []
        assert found is not None
        assert found[0] == replace(state, history={"prompt": 1.0})
        numbers = call(pair.ranks, "random_number")
        pair.learn(after)
        expected = parameters(pair)

        fresh = start(2, stage, offload_optimizer=offload, dtype=dtype)
        assert not same(parameters(fresh), expected)
        asyncio.run(replicas.restore([fresh.ranks]))
        assert call(fresh.ranks, "random_number") == numbers
        fresh.learn(after)
        assert same(parameters(fresh), expected)
    finally:
        replicas.close()


# -- disks that are full ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_ranks_that_cannot_write_meet_all_the_same_and_go_on(start, tmp_path: Path, small_disk, stage):
    two = start(2, stage)
    two.learn(make_samples(two.plain, FEW, seed=38))
    full = small_disk(1, max_files=3)
    for method in ("save", "export"):
        unwritten = call(two.ranks, method, str(full))
        assert any(unwritten), method
    two.learn(make_samples(two.plain, FEW, seed=39))
    (tmp_path / "room").mkdir()
    assert call(two.ranks, "save", str(tmp_path / "room")) == [[], []]
