"""The learner (real actors, DeepSpeed on gloo) against one process of plain PyTorch, step by step.

Both sides take the same steps, so optimizer state is compared too. Every step compares gradient, norm
and update, and starts from the same parameters, so that errors do not add up.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pair import (
    DEMONSTRATIONS,
    HPT_BATCH,
    MIXED,
    RATE,
    SAMPLES,
    TEMPERATURE,
    ZERO,
    C,
    N,
    Pair,
    hpt_loss,
    starting,
)
from plain import PlainLearner, distance, make_samples, norm
from probe import LIMIT_S, call, micro_batch_of, room_for

from hpt_ray.algorithms import BatchShape, Estimator, TokenBatch, make_estimator
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.config.schema import ModelConfig
from hpt_ray.config.training import LearnerConfig, ReferenceConfig
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.learner.reference import ReferenceSpec, ReferenceWorker
from hpt_ray.types import Sample, UpdateResult

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

EVERY_CHANGE = {(1, 1, False), (2, 2, False), (2, 3, True)}  # the other layouts of ranks are long tests
ROLLOUTS = [(rewards, False) for rewards, _ in MIXED if rewards]


def load_golden() -> ModuleType:
    """The module of the golden tests, which have every algorithm's loss written out."""
    path = Path(__file__).resolve().parents[1] / "golden" / "test_algorithms.py"
    spec = importlib.util.spec_from_file_location("golden_algorithms", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def start(ray_cluster, tiny_model):
    with starting(tiny_model) as start:
        yield start


@dataclass(frozen=True)
class Reference:
    """Two scorers of the frozen policy at `path`."""

    path: Path
    workers: ActorGroup


@pytest.fixture(scope="module")
def reference(ray_cluster, tiny_model):
    path = tiny_model("qwen2", True)
    spec = ReferenceSpec(ModelConfig(path=str(path)), str(path), ReferenceConfig(), TEMPERATURE, seed=0)
    room = room_for(reference=2)
    workers = room.create("reference", ReferenceWorker, [(spec, None)] * 2)
    call(workers, "start")
    yield Reference(path, workers)
    room.release()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (ranks, stage, offload),
            id=f"{ranks}-ranks-zero-{stage}" + ("-offload" if offload else ""),
            marks=() if (ranks, stage, offload) in EVERY_CHANGE else pytest.mark.long,
        )
        for ranks in (1, 2)
        for stage, offload in ZERO
    ],
)
def pair(request, start):
    num_ranks, stage, offload = request.param
    return start(num_ranks, stage, offload_optimizer=offload)


@pytest.mark.parametrize("max_tokens_per_micro_batch", [33, 96, 4096])
def test_gradient_and_step_equal_plain_pytorch(pair, max_tokens_per_micro_batch):
    """Uneven mixes of rollouts and demonstrations, in any layout and order."""
    for seed in (1, 2):
        prompts = make_samples(pair.plain, MIXED, seed=seed)
        np.random.default_rng(max_tokens_per_micro_batch).shuffle(prompts)
        result, gradient = pair.step(prompts, hpt_loss, max_tokens_per_micro_batch=max_tokens_per_micro_batch)
        assert norm(gradient) > 0.01
        assert (result.num_samples, result.num_demo_samples, result.num_skipped_samples) == (15, 3, 4)


def test_a_stream_without_samples_adds_exactly_nothing(pair):
    for groups, key in ((ROLLOUTS, "demo_coef"), (DEMONSTRATIONS, "rollout_coef")):
        prompts = make_samples(pair.plain, groups, seed=3)
        _, gradient = pair.step(prompts, hpt_loss, rate=0.0)
        _, without = pair.step(prompts, hpt_loss, rate=0.0, estimator=make_estimator("hpt", **{key: 0.0}))
        assert norm(gradient) > 0
        assert all((gradient[name] == without[name]).all() for name in gradient)


def test_a_step_without_samples_has_a_gradient_of_zero(pair):
    skipped = make_samples(pair.plain, [((1, 1, 1, 1), False)], seed=4)
    for prompts in ([], skipped):
        result, gradient = pair.step(prompts, hpt_loss)
        assert result.num_tokens == 0
        assert result.metrics["loss/total"] == 0
        assert all((g == 0).all() for g in gradient.values())


def test_samples_on_one_rank_only(pair):
    prompt = make_samples(pair.plain, [((), True)], seed=5)
    pair.plain.set_parameters(call(pair.ranks, "parameters")[0])
    loss = float(hpt_loss(pair.plain, prompt[0]))
    result, gradient = pair.step(prompt, hpt_loss)
    assert result.metrics["loss/total"] == pytest.approx(loss, rel=1e-5)
    assert result.num_tokens == len(prompt[0][0].token_ids)
    assert norm(gradient) > 0


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", False), ("llama", True), ("llama", False)])
def test_other_models_with_gradient_checkpointing(start, num_ranks, stage, architecture, tied):
    pair = start(num_ranks, stage, architecture=architecture, tied=tied, gradient_checkpointing=True)
    for seed in (6, 7):
        pair.step(make_samples(pair.plain, MIXED, seed=seed), hpt_loss)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_without_a_clip_the_norm_is_still_reported(start, stage):
    pair = start(2, stage, max_grad_norm=0.0)
    pair.step(make_samples(pair.plain, MIXED, seed=16), hpt_loss)


@pytest.mark.parametrize(
    ("num_ranks", "stage", "offload"),
    [(1, 0, False), (1, 1, False), (2, 2, True), (2, 3, False)]
    + [
        pytest.param(2, *layout, marks=pytest.mark.long)
        for layout in ((0, False), (1, False), (2, False), (3, True))
    ],
)
def test_the_pull_to_the_base_equals_plain_pytorch(start, num_ranks, stage, offload):
    """θ − lr·κ·(θ − θ₀) after AdamW's step, here half the way back: far more than the step itself."""
    pair = start(num_ranks, stage, offload_optimizer=offload, base_pull=0.5 / RATE)
    for seed in (6, 7, 8):
        result, _ = pair.step(make_samples(pair.plain, MIXED, seed=seed), hpt_loss)
        away = distance(call(pair.ranks, "parameters")[0], pair.plain.base)
        assert away > 0
        assert result.metrics["optim/base_distance"] == pytest.approx(away / norm(pair.plain.base), rel=1e-4)


def loss_with_rehearsal(plain: PlainLearner, samples: list[Sample], rows: list[Sample]) -> torch.Tensor:
    """HPT whose demonstrations are a mean over tokens, and rows that are a mean over rows' means, times rows/N."""
    own = torch.cat([plain.score(sample)[0] for sample in samples if sample.is_demo])
    total = hpt_loss(plain, [sample for sample in samples if not sample.is_demo]) - own.mean()
    return total - sum(plain.score(row)[0].mean() for row in rows) / N


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 3)])
def test_rehearsal_equals_plain_pytorch_and_counts_in_no_other_stream(start, num_ranks, stage):
    """The demonstrations' Z counts their tokens, so it waits for all samples of the update, but for no row."""
    pair = start(num_ranks, stage)
    estimator = make_estimator("hpt", demo_loss_aggregation="token-mean").rehearsing()
    for seed in (17, 18):
        prompts = make_samples(pair.plain, MIXED, seed=seed)
        drawn = make_samples(pair.plain, DEMONSTRATIONS * 2, seed=seed + 2)
        rows = [replace(sample, is_rehearsal=True) for samples in drawn for sample in samples]
        loss = partial(loss_with_rehearsal, rows=rows)
        result, gradient = pair.step(prompts, loss, estimator=estimator, rehearsal=rows)
        assert norm(gradient) > 0.01
        assert (result.num_samples, result.num_demo_samples) == (15, 3)
        assert 0 < result.metrics["learner/rehearsal_loss"] != result.metrics["learner/demo_loss"]


# -- every algorithm of the table ------------------------------------------------------------------

GOLDEN = load_golden()
ALGORITHMS = [key for key in GOLDEN.CLASSICAL if key[0] != "ppo"]  # its critic has tests of its own


def classical_loss(
    key: tuple[str, str, str | None], plain: PlainLearner, frozen: PlainLearner, samples: list[Sample]
) -> torch.Tensor:
    """The loss that the golden tests write down from the paper, on the plain policies' log-probs."""
    logprob, entropy = (torch.cat(parts) for parts in zip(*map(plain.score, samples), strict=True))
    token_samples = TokenBatch(
        logprobs=logprob,
        old_logprobs=torch.from_numpy(np.concatenate([sample.old_logprobs for sample in samples])),
        sample_lengths=torch.tensor([sample.response_length for sample in samples]),
        group_ids=torch.tensor([sample.group for sample in samples]),
        rewards=torch.tensor([sample.reward for sample in samples], dtype=torch.float64),
        is_demo=torch.tensor([sample.is_demo for sample in samples]),
        entropy=entropy,
        ref_logprobs=torch.cat([frozen.score(sample)[0].detach() for sample in samples]),
    )
    batch = BatchShape(num_prompts=3, num_rollouts=4, max_response_tokens=C)
    return GOLDEN.CLASSICAL[key][1](GOLDEN.Case(token_samples, [], batch))


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=["1-rank", "2-ranks"])
def any_pair(request, start):
    return start(*request.param)


@pytest.mark.parametrize("key", ALGORITHMS, ids=lambda key: "-".join(map(str, key)))
def test_step_of_every_algorithm_equals_plain_pytorch(any_pair, reference, key):
    name, mode, branch = key
    estimator = make_estimator(name, mode=mode, offline_branch=branch)
    frozen = PlainLearner(reference.path, LearnerConfig(), TEMPERATURE)
    with_rollouts, with_demonstrations = GOLDEN.CLASSICAL[key][0]
    groups = [
        (rewards if with_rollouts else (), with_demonstrations)
        for rewards in ((1, 0, 0, 1), (0, 1, 0, 0), (1, 1, 1, 1))
    ]
    # The official mode lays samples out by their lengths; with equal prompts it is the golden tests' layout.
    prompts = make_samples(any_pair.plain, groups, seed=8, prompt_lengths=(5, 6))
    _, gradient = any_pair.step(
        prompts,
        lambda plain, samples: classical_loss(key, plain, frozen, samples),
        estimator=estimator,
        batch=BatchShape(num_prompts=3, num_rollouts=4, max_response_tokens=C),
        reference=reference.workers if estimator.needs_reference else None,
    )
    assert norm(gradient) > 1e-4


@pytest.mark.parametrize("key", ALGORITHMS, ids=lambda key: "-".join(map(str, key)))
def test_a_streaming_step_has_the_gradient_of_a_synchronous_one(any_pair, reference, key):
    """The same rollouts, prompt by prompt as they happen to come in, and all at once."""
    name, mode, branch = key
    estimator = make_estimator(name, mode=mode, offline_branch=branch)
    with_rollouts, with_demonstrations = GOLDEN.CLASSICAL[key][0]
    rewards = [(1, 0, 0, 1), (0, 1, 0, 0), (1, 1, 1, 0), (0, 0, 1, 1), (0, 1, 1, 1), (1, 0, 1, 0)]
    groups = [(given if with_rollouts else (), with_demonstrations) for given in rewards]
    prompts = make_samples(any_pair.plain, groups, seed=9, prompt_lengths=(5, 6))
    call(any_pair.ranks, "use", estimator)

    def gradient(order, *, pause_s, max_tokens_per_micro_batch):
        learner = LearnerGroup(
            any_pair.ranks,
            estimator,
            batch=BatchShape(num_prompts=len(groups), num_rollouts=4, max_response_tokens=C),
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            timeout_s=LIMIT_S,
            reference=reference.workers if estimator.needs_reference else None,
        )

        async def update() -> None:
            for i in order:
                learner.add(prompts[i])
                await asyncio.sleep(pause_s)
            await learner.finish(0.0)

        asyncio.run(update())
        return call(any_pair.ranks, "gradient")[0]

    in_order = list(range(len(groups)))
    synchronous = gradient(in_order, pause_s=0.0, max_tokens_per_micro_batch=4096)
    streaming = gradient([3, 0, 5, 1, 4, 2], pause_s=0.01, max_tokens_per_micro_batch=96)
    assert norm(synchronous) > 1e-4
    assert distance(streaming, synchronous) <= 1e-6 * norm(synchronous)
    # Where the order of the sum is fixed, when things happen changes no bit.
    early = gradient(in_order, pause_s=0.0, max_tokens_per_micro_batch=96)
    late = gradient(in_order, pause_s=0.01, max_tokens_per_micro_batch=96)
    assert all((early[key] == late[key]).all() for key in early)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_to_a_frozen_policy_equals_plain_pytorch(start, reference, kind):
    """The scorer in actors of its own; prompts of equal rewards count for the KL alone."""
    pair = start(2, 2)
    frozen = PlainLearner(reference.path, LearnerConfig(), TEMPERATURE)

    def loss(plain: PlainLearner, samples: list[Sample]) -> torch.Tensor:
        total = hpt_loss(plain, samples)
        for sample in samples:
            with torch.no_grad():
                ref_logprobs, _ = frozen.score(sample)
            d = plain.score(sample)[0] - ref_logprobs
            kl = {"k1": d, "k2": d.square() / 2, "k3": (-d).exp() - 1 + d}[kind]
            total = total + 0.3 * kl.sum() / (N * SAMPLES * C)
        return total

    estimator = make_estimator("dr_grpo", rollout_clip="none", kl_coef=0.3, kl_estimator=kind)
    for seed in (14, 15):
        prompts = make_samples(pair.plain, ROLLOUTS, seed=seed)
        result, _ = pair.step(prompts, loss, estimator=estimator, rate=0.01, reference=reference.workers)
        assert result.num_skipped_samples == 0


# -- whose log π_old -------------------------------------------------------------------------------


def take_step(
    pair: Pair,
    updates: list[list[list[Sample]]],
    estimator: Estimator,
    reference: ActorGroup | None,
    recompute: bool,
) -> tuple[list[UpdateResult], list[dict[str, np.ndarray]]]:
    """A step of several updates whose samples are all known before the first; results and gradients."""
    call(pair.ranks, "use", estimator)
    learner = LearnerGroup(
        pair.ranks,
        estimator,
        batch=HPT_BATCH,
        max_tokens_per_micro_batch=96,
        timeout_s=LIMIT_S,
        reference=reference,
        updates_per_step=len(updates),
        recompute_old_logprobs=recompute,
        sequence_parallel=pair.sequence_parallel,
    )

    async def step() -> tuple[list[UpdateResult], list[dict[str, np.ndarray]]]:
        for update, prompts in enumerate(updates):
            for samples in prompts:
                learner.add(samples, update)
        results, gradients = [], []
        for _ in updates:
            results.append(await learner.finish(RATE))
            gradients.append((await pair.ranks.call("gradient", timeout_s=LIMIT_S))[0])
        return results, gradients

    return asyncio.run(step())


@pytest.mark.parametrize("kl_in", [None, "loss", "reward"])
@pytest.mark.parametrize(("num_ranks", "stage", "sharing"), [(1, 1, 1), (2, 3, 1), (2, 1, 2)])
def test_old_logps_can_be_the_learners_own(start, reference, num_ranks, stage, sharing, kl_in):
    """As if the sampler had reported the log-probs of the learner's weights before the step."""
    kl = {} if kl_in is None else {"kl_coef": 0.1, "kl_in": kl_in}
    estimator = make_estimator("grpo", **kl)
    workers = None if kl_in is None else reference.workers
    restart = partial(start, num_ranks, stage, sequence_parallel=sharing)
    pair = restart()
    groups = [((1, 0, 0, 1), False), ((0, 1), True), ((1, 0, 0), False)]
    updates = [make_samples(pair.plain, groups, seed=seed) for seed in (42, 43)]
    own, gaps = [], []
    for prompts in updates:
        samples = [sample for samples in prompts for sample in samples]
        ends = np.cumsum([sample.response_length for sample in samples])[:-1]
        logprobs = np.split(call(pair.ranks, "logprobs", micro_batch_of(samples))[0][0], ends)
        mine = {
            id(sample): sample.old_logprobs if sample.is_demo else logprob
            for sample, logprob in zip(samples, logprobs, strict=True)
        }
        own.append(
            [[replace(sample, old_logprobs=mine[id(sample)]) for sample in samples] for samples in prompts]
        )
        gaps.append(np.concatenate([np.abs(mine[id(r)] - r.old_logprobs) for r in samples if not r.is_demo]))

    theirs = take_step(restart(), updates, estimator, workers, recompute=False)
    expected = take_step(restart(), own, estimator, workers, recompute=False)
    results, gradients = take_step(restart(), updates, estimator, workers, recompute=True)
    for gradient, other, sampled in zip(gradients, expected[1], theirs[1], strict=True):
        assert distance(gradient, other) < 1e-5 * norm(other)
        assert distance(gradient, sampled) > 1e-2 * norm(other)
    for result, gap in zip(results, gaps, strict=True):  # the gap is that to the sampler
        assert result.metrics["policy/logprob_gap_mean"] == pytest.approx(gap.mean(), rel=1e-3)
        assert result.metrics["policy/logprob_gap_max"] == pytest.approx(gap.max(), rel=1e-3)
    assert results[0].metrics["policy/effective_sample_size"] == pytest.approx(1, abs=1e-6)


# -- times -----------------------------------------------------------------------------------------


def test_every_rank_says_when_it_was_busy(start, tmp_path):
    pair = start(2, 2)
    prompts = make_samples(pair.plain, MIXED, seed=44)
    pair.learn(prompts)
    begin = time.time()
    call(pair.ranks, "logprobs", micro_batch_of(prompts[0]))
    call(pair.ranks, "save", str(tmp_path))
    call(pair.ranks, "export", str(tmp_path / "hf"))
    result = pair.learn(prompts)
    end = time.time()
    assert list(result.spans) == pair.ranks.names
    for spans in result.spans.values():
        names = [name for name, _, _ in spans]
        assert names[:3] == ["score", "save", "export"]
        assert set(names[3:-1]) == {"backward"}
        assert names[-1] == "step"
        times = [time for _, *times in spans for time in times]
        assert times == sorted(times)
        assert begin < times[0] < times[-1] < end
    sums = [sum(end - start for _, start, end in spans) for spans in result.spans.values()]
    assert result.busy_s == pytest.approx(max(sums))
    assert all(spans[0][0] == "backward" for spans in pair.learn(prompts).spans.values())


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "offload", "base_pull"),
    [
        pytest.param(0, False, 0.0, marks=pytest.mark.long),
        pytest.param(1, False, 0.0, marks=pytest.mark.long),
        (2, False, 20.0),
        pytest.param(3, False, 0.0, marks=pytest.mark.long),
        (3, True, 20.0),
    ],
)
def test_checkpoint_goes_on_bitwise_in_other_processes(start, tmp_path, stage, offload, base_pull):
    first = start(2, stage, offload_optimizer=offload, base_pull=base_pull)
    for seed in (9, 10):
        first.step(make_samples(first.plain, MIXED, seed=seed), hpt_loss)
    (tmp_path / "state").mkdir()
    call(first.ranks, "save", str(tmp_path / "state"))
    later = [make_samples(first.plain, MIXED, seed=seed) for seed in (11, 12)]
    norms = [first.step(samples, hpt_loss)[0].metrics["optim/grad_norm"] for samples in later]

    second = start(2, stage, offload_optimizer=offload, base_pull=base_pull, processes="second")
    call(second.ranks, "load", str(tmp_path / "state"))
    for samples, expected in zip(later, norms, strict=True):
        assert second.learn(samples).metrics["optim/grad_norm"] == expected
    assert distance(call(second.ranks, "parameters")[0], call(first.ranks, "parameters")[0]) == 0


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False)])
@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 3)])
def test_export_is_the_same_model_in_plain_transformers(
    start, tmp_path, num_ranks, stage, architecture, tied
):
    pair = start(num_ranks, stage, architecture=architecture, tied=tied)
    prompts = make_samples(pair.plain, MIXED, seed=13)
    pair.step(prompts, hpt_loss)
    call(pair.ranks, "export", str(tmp_path / "hf"))

    exported = PlainLearner(tmp_path / "hf", LearnerConfig(), TEMPERATURE)
    assert exported.model.config.tie_word_embeddings == tied
    assert distance(exported.parameters(), call(pair.ranks, "parameters")[0]) == 0
    samples = [sample for prompt in prompts for sample in prompt]
    logprob, entropy = call(pair.ranks, "logprobs", micro_batch_of(samples))[0]
    with torch.no_grad():
        expected = [torch.cat(parts).numpy() for parts in zip(*map(exported.score, samples), strict=True)]
    assert np.abs(logprob - expected[0]).max() < 1e-4
    assert np.abs(entropy - expected[1]).max() < 1e-4
    assert load_tokenizer(str(tmp_path / "hf")).get_vocab() == build_tokenizer().get_vocab()
