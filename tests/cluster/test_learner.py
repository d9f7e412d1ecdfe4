"""The learner (real actors, DeepSpeed on gloo) against one process of plain PyTorch, step by step.

Both sides take the same steps, so optimizer state is compared too. Every step compares gradient, norm
and update, and starts from the same parameters, so that errors do not add up.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from plain import PlainLearner, distance, make_rows, norm
from probe import LIMIT_S, call, pack_of, room_for, start_learners

from hpt_ray.cluster.groups import ActorGroup
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import LearnerConfig, ModelConfig, ReferenceConfig
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.estimators import BatchShape, Estimator, TokenRows, make_estimator
from hpt_ray.learner.group import LearnerGroup, UpdateResult
from hpt_ray.records import Row
from hpt_ray.reference.worker import ReferenceSpec, ReferenceWorker

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TEMPERATURE = 0.7
RATE = 1e-3
N, SAMPLES, C = 6, 4, 24
HPT, HPT_BATCH = make_estimator("hpt"), BatchShape(N, SAMPLES, C)

# What the gate let through of each question: rewards of its rollouts, and whether its demonstration.
MIXED = [
    ((1, 0, 0, 1), False),
    ((), True),
    ((0, 1, 0, 0), False),
    ((), True),
    ((1, 1, 1, 1), False),
    ((), True),
]
ROLLOUTS = [(rewards, False) for rewards, _ in MIXED if rewards]
DEMONSTRATIONS = [((), True)] * 4

ZERO = [(0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]


def load_golden() -> ModuleType:
    """The module of the golden tests, which have every algorithm's loss written out."""
    path = Path(__file__).resolve().parents[1] / "golden" / "test_algorithms.py"
    spec = importlib.util.spec_from_file_location("golden_algorithms", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


class Pair:
    """The learner and its plain counterpart."""

    def __init__(self, ranks: ActorGroup, plain: PlainLearner):
        self.ranks, self.plain = ranks, plain

    def step(
        self,
        questions: list[list[Row]],
        loss: Callable[[PlainLearner, list[Row]], torch.Tensor],
        *,
        estimator: Estimator = HPT,
        batch: BatchShape = HPT_BATCH,
        tokens_per_microbatch: int = 96,
        rate: float = RATE,
        reference: ActorGroup | None = None,
    ) -> tuple[UpdateResult, dict[str, np.ndarray]]:
        """One step on both sides; asserts that they agree. The learner's result and gradient."""
        before = call(self.ranks, "parameters")[0]
        self.plain.set_parameters(before)
        rows = [row for question in questions for row in question]
        expected, expected_norm = self.plain.gradient(loss(self.plain, rows))
        self.plain.step(rate)
        expected_update = difference(self.plain.parameters(), before)

        result = self.learn(
            questions,
            estimator=estimator,
            batch=batch,
            tokens_per_microbatch=tokens_per_microbatch,
            rate=rate,
            reference=reference,
        )
        gradient = call(self.ranks, "gradient")[0]
        update = difference(call(self.ranks, "parameters")[0], before)

        assert all(np.isfinite(g).all() for g in gradient.values())
        assert distance(gradient, expected) <= 1e-5 * expected_norm
        assert result.metrics["optim/grad_norm"] == pytest.approx(expected_norm, rel=1e-5, abs=0)
        assert distance(update, expected_update) <= 1e-3 * norm(expected_update)
        return result, gradient

    def learn(
        self,
        questions: list[list[Row]],
        *,
        estimator: Estimator = HPT,
        batch: BatchShape = HPT_BATCH,
        tokens_per_microbatch: int = 96,
        rate: float = RATE,
        reference: ActorGroup | None = None,
    ) -> UpdateResult:
        """One step of the learner alone, as the driver takes it."""
        call(self.ranks, "use", estimator)
        learner = LearnerGroup(
            self.ranks,
            estimator,
            batch=batch,
            tokens_per_microbatch=tokens_per_microbatch,
            timeout_s=LIMIT_S,
            reference=reference,
        )

        async def update() -> UpdateResult:
            for question in questions:
                learner.add(question)
            return await learner.finish(rate)

        return asyncio.run(update())


def difference(after: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: after[name] - before[name] for name in before}


def hpt_loss(plain: PlainLearner, rows: Sequence[Row]) -> torch.Tensor:
    """HPT by hand: −Σ ρ (R − mean)/(N n C) on rollouts, −Σ mean log π / N on demonstrations."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logp, _ = plain.score(row)
        if row.is_demo:
            total = total - logp.mean() / N
        else:
            rewards = [other.reward for other in rows if other.group == row.group and not other.is_demo]
            ratio = (logp - torch.from_numpy(row.logp_old)).exp()
            total = total - ratio.sum() * (row.reward - np.mean(rewards)) / (N * SAMPLES * C)
    return total


@pytest.fixture(scope="module")
def start(ray_cluster, tiny_model):
    """`start(num_ranks, …)`: a new pair, in processes that are used again for the same number of ranks."""
    running: dict[tuple[int, str], tuple[Cluster, ActorGroup]] = {}

    def make(
        num_ranks: int,
        zero_stage: int,
        *,
        architecture: str = "qwen2",
        tied: bool = True,
        processes: str = "first",
        **learner: Any,
    ) -> Pair:
        path = tiny_model(architecture, tied)
        # The clip bites in most steps; the weight decay is large enough to be seen.
        options = {"max_grad_norm": 0.5, "weight_decay": 0.1, **learner}
        config = LearnerConfig(num_ranks=num_ranks, zero_stage=zero_stage, **options)
        if (num_ranks, processes) in running:
            ranks = running[num_ranks, processes][1]
            call(ranks, "restart", config, str(path))
        else:
            room = room_for(learner=num_ranks)
            ranks = start_learners(room, path, config, temperature=TEMPERATURE)
            running[num_ranks, processes] = room, ranks
        return Pair(ranks, PlainLearner(path, config, TEMPERATURE))

    yield make
    for room, _ in running.values():
        room.release()


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
    params=[(ranks, stage, offload) for ranks in (1, 2) for stage, offload in ZERO],
    ids=lambda p: f"{p[0]}-ranks-zero-{p[1]}" + ("-offload" if p[2] else ""),
)
def pair(request, start):
    num_ranks, stage, offload = request.param
    return start(num_ranks, stage, offload_optimizer=offload)


@pytest.mark.parametrize("tokens_per_microbatch", [33, 96, 4096])
def test_gradient_and_step_equal_plain_pytorch(pair, tokens_per_microbatch):
    """Uneven mixes of rollouts and demonstrations, in any layout and order."""
    for seed in (1, 2):
        questions = make_rows(pair.plain, MIXED, seed=seed)
        np.random.default_rng(tokens_per_microbatch).shuffle(questions)
        result, gradient = pair.step(questions, hpt_loss, tokens_per_microbatch=tokens_per_microbatch)
        assert norm(gradient) > 0.01
        assert (result.num_rows, result.num_demo_rows, result.num_skipped_rows) == (15, 3, 4)


def test_a_stream_without_rows_adds_exactly_nothing(pair):
    for groups, key in ((ROLLOUTS, "demo_coef"), (DEMONSTRATIONS, "rollout_coef")):
        questions = make_rows(pair.plain, groups, seed=3)
        _, gradient = pair.step(questions, hpt_loss, rate=0.0)
        _, without = pair.step(questions, hpt_loss, rate=0.0, estimator=make_estimator("hpt", **{key: 0.0}))
        assert norm(gradient) > 0
        assert all((gradient[name] == without[name]).all() for name in gradient)


def test_a_step_without_rows_has_a_gradient_of_zero(pair):
    skipped = make_rows(pair.plain, [((1, 1, 1, 1), False)], seed=4)
    for questions in ([], skipped):
        result, gradient = pair.step(questions, hpt_loss)
        assert result.num_tokens == 0
        assert all((g == 0).all() for g in gradient.values())


def test_rows_on_one_rank_only(pair):
    question = make_rows(pair.plain, [((), True)], seed=5)
    result, gradient = pair.step(question, hpt_loss)
    assert result.num_tokens == len(question[0][0].token_ids)
    assert norm(gradient) > 0


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", False), ("llama", True), ("llama", False)])
def test_other_models_with_gradient_checkpointing(start, num_ranks, stage, architecture, tied):
    pair = start(num_ranks, stage, architecture=architecture, tied=tied, gradient_checkpointing=True)
    for seed in (6, 7):
        pair.step(make_rows(pair.plain, MIXED, seed=seed), hpt_loss)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_without_a_clip_the_norm_is_still_reported(start, stage):
    pair = start(2, stage, max_grad_norm=0.0)
    pair.step(make_rows(pair.plain, MIXED, seed=16), hpt_loss)


# -- every algorithm of the table ------------------------------------------------------------------

GOLDEN = load_golden()
ALGORITHMS = [key for key in GOLDEN.CLASSICAL if key[0] != "ppo"]  # its critic has tests of its own


def classical_loss(key: tuple[str, str, str | None], plain: PlainLearner, rows: list[Row]) -> torch.Tensor:
    """The loss that the golden tests write down from the paper, on the plain policy's log-probs."""
    logp, entropy = (torch.cat(parts) for parts in zip(*map(plain.score, rows), strict=True))
    token_rows = TokenRows(
        logp_now=logp,
        logp_old=torch.from_numpy(np.concatenate([row.logp_old for row in rows])),
        row_lengths=torch.tensor([row.response_length for row in rows]),
        group_ids=torch.tensor([row.group for row in rows]),
        rewards=torch.tensor([row.reward for row in rows], dtype=torch.float64),
        is_demo=torch.tensor([row.is_demo for row in rows]),
        entropy=entropy,
    )
    batch = BatchShape(num_questions=3, num_rollouts=4, max_response_tokens=C)
    return GOLDEN.CLASSICAL[key][1](GOLDEN.Case(token_rows, [], batch))


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=["1-rank", "2-ranks"])
def any_pair(request, start):
    return start(*request.param)


@pytest.mark.parametrize("key", ALGORITHMS, ids=lambda key: "-".join(map(str, key)))
def test_step_of_every_algorithm_equals_plain_pytorch(any_pair, key):
    name, mode, branch = key
    with_rollouts, with_demonstrations = GOLDEN.CLASSICAL[key][0]
    groups = [
        (rewards if with_rollouts else (), with_demonstrations)
        for rewards in ((1, 0, 0, 1), (0, 1, 0, 0), (1, 1, 1, 1))
    ]
    # The official mode lays rows out by their lengths; with equal prompts it is the golden tests' layout.
    questions = make_rows(any_pair.plain, groups, seed=8, prompt_lengths=(5, 6))
    _, gradient = any_pair.step(
        questions,
        lambda plain, rows: classical_loss(key, plain, rows),
        estimator=make_estimator(name, mode=mode, offline_branch=branch),
        batch=BatchShape(num_questions=3, num_rollouts=4, max_response_tokens=C),
    )
    assert norm(gradient) > 1e-4


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_to_a_frozen_policy_equals_plain_pytorch(start, reference, kind):
    """The scorer in actors of its own; questions of equal rewards count for the KL alone."""
    pair = start(2, 2)
    frozen = PlainLearner(reference.path, LearnerConfig(), TEMPERATURE)

    def loss(plain: PlainLearner, rows: list[Row]) -> torch.Tensor:
        total = hpt_loss(plain, rows)
        for row in rows:
            with torch.no_grad():
                logp_ref, _ = frozen.score(row)
            d = plain.score(row)[0] - logp_ref
            kl = {"k1": d, "k2": d.square() / 2, "k3": (-d).exp() - 1 + d}[kind]
            total = total + 0.3 * kl.sum() / (N * SAMPLES * C)
        return total

    estimator = make_estimator("dr_grpo", rollout_mask="none", kl_coef=0.3, kl_estimator=kind)
    for seed in (14, 15):
        questions = make_rows(pair.plain, ROLLOUTS, seed=seed)
        result, _ = pair.step(questions, loss, estimator=estimator, rate=0.01, reference=reference.workers)
        assert result.num_skipped_rows == 0


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, False), (2, False), (3, False), (3, True)])
def test_checkpoint_goes_on_bitwise_in_other_processes(start, tmp_path, stage, offload):
    first = start(2, stage, offload_optimizer=offload)
    for seed in (9, 10):
        first.step(make_rows(first.plain, MIXED, seed=seed), hpt_loss)
    (tmp_path / "state").mkdir()
    call(first.ranks, "save", str(tmp_path / "state"))
    later = [make_rows(first.plain, MIXED, seed=seed) for seed in (11, 12)]
    norms = [first.step(rows, hpt_loss)[0].metrics["optim/grad_norm"] for rows in later]

    second = start(2, stage, offload_optimizer=offload, processes="second")
    call(second.ranks, "load", str(tmp_path / "state"))
    for rows, expected in zip(later, norms, strict=True):
        assert second.learn(rows).metrics["optim/grad_norm"] == expected
    assert distance(call(second.ranks, "parameters")[0], call(first.ranks, "parameters")[0]) == 0


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False)])
@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 3)])
def test_export_is_the_same_model_in_plain_transformers(
    start, tmp_path, num_ranks, stage, architecture, tied
):
    pair = start(num_ranks, stage, architecture=architecture, tied=tied)
    questions = make_rows(pair.plain, MIXED, seed=13)
    pair.step(questions, hpt_loss)
    call(pair.ranks, "export", str(tmp_path / "hf"))

    exported = PlainLearner(tmp_path / "hf", LearnerConfig(), TEMPERATURE)
    assert exported.model.config.tie_word_embeddings == tied
    assert distance(exported.parameters(), call(pair.ranks, "parameters")[0]) == 0
    rows = [row for question in questions for row in question]
    logp, entropy = call(pair.ranks, "logprobs", pack_of(rows))[0]
    with torch.no_grad():
        expected = [torch.cat(parts).numpy() for parts in zip(*map(exported.score, rows), strict=True)]
    assert np.abs(logp - expected[0]).max() < 1e-4
    assert np.abs(entropy - expected[1]).max() < 1e-4
    assert load_tokenizer(str(tmp_path / "hf")).get_vocab() == build_tokenizer().get_vocab()
