"""PPO's critic and the frozen reference on real actors: against plain PyTorch, through checkpoints, in runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from plain import PlainLearner, distance, make_samples, norm
from probe import LIMIT_S, call, gradient_of, micro_batch_of, room_for, start_learners
from ray._private import state as ray_state
from transformers import AutoModelForTokenClassification

from hpt_ray.algorithms import BatchShape, make_estimator
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import ClusterConfig, ModelConfig
from hpt_ray.config.training import LearnerConfig, ReferenceConfig
from hpt_ray.data.mini.base import fresh_model, parse_name, tokenizer_path
from hpt_ray.driver.driver import Driver
from hpt_ray.driver.setup import prepare
from hpt_ray.learner.critic import CriticSpec, CriticWorker
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.learner.reference import ReferenceSpec, ReferenceWorker
from hpt_ray.observe.metrics import unknown_metrics
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.types import Sample, UpdateResult, ValueTargets

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TEMPERATURE, CLIP, KL_COEF, LAMBDA = 0.7, 0.2, 0.1, 0.95
N, SAMPLES, C = 3, 4, 24
BATCH = BatchShape(N, SAMPLES, C)
GROUPS = [((1, 0, 0, 1), False), ((0, 1, 0, 0), False), ((1, 1, 1, 1), True)]


class ProbedCritic(CriticWorker):
    """A rank that keeps the gradient of each step, and starts from a head that is not zero."""

    def _module(self) -> Any:
        module = super()._module()
        assert not module.model.score.weight.any()
        assert not module.model.score.bias.any()
        torch.manual_seed(7)
        torch.nn.init.normal_(module.model.score.weight, std=0.3)
        torch.nn.init.constant_(module.model.score.bias, 0.2)
        return module

    def step(self, learning_rate: float) -> Any:
        self._gradient = gradient_of(self)
        return super().step(learning_rate)

    def gradient(self) -> dict[str, np.ndarray] | None:
        return self._gradient


class CountingReference(ReferenceWorker):
    """A scorer that counts its micro-batches, and may take its time over them."""

    count = 0
    pause_s = 0.0

    def dawdle(self, pause_s: float) -> None:
        self.pause_s = pause_s

    def logprobs(self, micro_batch: Any) -> Any:
        self.count += 1
        time.sleep(self.pause_s)
        return super().logprobs(micro_batch)

    def micro_batches(self) -> int:
        return self.count


@dataclass
class Actors:
    """The learner, the critic and two reference workers on one tiny model."""

    path: Path
    learners: ActorGroup
    critic: ActorGroup
    reference: ActorGroup
    sharing: int  # ranks of a micro-batch

    def update(
        self, prompts: list[list[Sample]], rates: tuple[float, float] = (1e-3, 1e-2), **algorithm: Any
    ) -> UpdateResult:
        """One update as the driver takes it."""
        estimator = make_estimator(**algorithm)
        call(self.learners, "use", estimator)
        group = LearnerGroup(
            self.learners,
            estimator,
            batch=BATCH,
            max_tokens_per_micro_batch=48,
            timeout_s=LIMIT_S,
            reference=self.reference if estimator.needs_reference else None,
            critic=self.critic if estimator.needs_values else None,
            sequence_parallel=self.sharing,
        )

        async def run() -> UpdateResult:
            for samples in prompts:
                group.add(samples)
                await asyncio.sleep(0)  # as the driver does between two prompts
            return await group.finish(*rates)

        return asyncio.run(run())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, 1, 1), id="1 rank, ZeRO 1"),
        pytest.param((2, 3, 1), id="2 ranks, ZeRO 3"),
        pytest.param((2, 2, 2), id="2 ranks that share, ZeRO 2", marks=pytest.mark.long),
    ],
)
def actors(request, ray_cluster: Cluster, tiny_model: Callable) -> Iterator[Actors]:
    num_ranks, stage, sharing = request.param
    path = tiny_model("qwen2", True)
    config = LearnerConfig(num_ranks=num_ranks, num_cpus=0.5, zero_stage=stage, sequence_parallel=sharing)
    model = ModelConfig(path=str(path))
    room = room_for(learner=num_ranks, critic=num_ranks, reference=2)
    spec = CriticSpec(model, str(path), config, 0, CLIP)
    critic = room.create("critic", ProbedCritic, [(r, num_ranks, spec, None) for r in range(num_ranks)])
    frozen = ReferenceSpec(model, str(path), ReferenceConfig(num_cpus=0.5), TEMPERATURE, seed=0)
    reference = room.create("reference", CountingReference, [(frozen, None)] * 2)
    learners = start_learners(room, path, config, temperature=TEMPERATURE)
    call(critic, "start", call(critic, "rendezvous")[0])
    call(reference, "start")
    yield Actors(path, learners, critic, reference, sharing)
    room.release()


class PlainCritic:
    """A backbone and a head in float64, one sample at a time, with the weights of `folder`."""

    def __init__(self, folder: Path):
        self.model = AutoModelForTokenClassification.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        )

    def values(self, sample: Sample) -> torch.Tensor:
        tokens = torch.from_numpy(sample.token_ids).long()[None]
        return self.model(input_ids=tokens).logits[0, sample.prompt_length - 1 : -1, 0]

    def gradient(self, loss: torch.Tensor) -> dict[str, np.ndarray]:
        self.model.zero_grad()
        loss.backward()
        return {name: p.grad.numpy().copy() for name, p in self.model.named_parameters()}


def plain_gae(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Â_t = Σ_k λ^k δ_{t+k} of one sample, term by term."""
    deltas = rewards + np.append(values[1:], 0.0) - values
    num = len(values)
    return np.array([sum(LAMBDA ** (k - t) * deltas[k] for k in range(t, num)) for t in range(num)])


def test_a_step_equals_plain_pytorch(actors: Actors, tmp_path: Path) -> None:
    call(actors.critic, "export", str(tmp_path / "critic"))
    call(actors.learners, "export", str(tmp_path / "policy"))
    policy = PlainLearner(tmp_path / "policy", LearnerConfig(), TEMPERATURE)
    frozen = PlainLearner(actors.path, LearnerConfig(), TEMPERATURE)
    critic = PlainCritic(tmp_path / "critic")
    prompts = make_samples(policy, GROUPS, seed=3)

    policy_loss = value_loss = torch.zeros((), dtype=torch.float64)
    errors, returns = [], []
    for sample in (sample for samples in prompts for sample in samples if not sample.is_demo):
        logprob, _ = policy.score(sample)
        values = critic.values(sample)
        with torch.no_grad():
            kl = torch.from_numpy(sample.old_logprobs).double() - frozen.score(sample)[0]
            rewards = -KL_COEF * (torch.expm1(-kl) + kl)
        rewards[-1] += sample.reward
        advantage = torch.from_numpy(plain_gae(rewards.numpy(), values.detach().numpy()))
        ratio = (logprob - torch.from_numpy(sample.old_logprobs)).exp()
        z = N * SAMPLES * sample.response_length
        gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        policy_loss = policy_loss - gain.sum() / z
        returns.append((advantage + values.detach()).numpy())
        errors.append(advantage.numpy())
        value_loss = value_loss + 0.5 * (values - torch.from_numpy(returns[-1])).square().sum() / z
    expected, expected_norm = policy.gradient(policy_loss)
    expected_values = critic.gradient(value_loss)

    before = sum(call(actors.reference, "micro_batches"))
    result = actors.update(prompts, name="ppo", kl_coef=KL_COEF, kl_in="reward")
    assert distance(call(actors.learners, "gradient")[0], expected) < 1e-5 * expected_norm
    assert distance(call(actors.critic, "gradient")[0], expected_values) < 1e-5 * norm(expected_values)
    assert min(call(actors.reference, "micro_batches")) > 0
    assert sum(call(actors.reference, "micro_batches")) - before >= 4
    assert result.num_samples == 13
    assert result.num_skipped_samples == 1  # PPO has no term on the demonstration

    g, e = np.concatenate(returns), np.concatenate(errors)
    metrics = result.metrics
    assert metrics["critic/value_loss"] == pytest.approx(0.5 * (e**2).mean(), rel=1e-4)
    assert metrics["critic/explained_variance"] == pytest.approx(1 - e.var() / g.var(), rel=1e-4)
    assert metrics["critic/return_mean"] == pytest.approx(g.mean(), rel=1e-4)
    assert metrics["critic/value_mean"] == pytest.approx((g - e).mean(), rel=1e-4)
    assert metrics["critic/grad_norm"] == pytest.approx(norm(expected_values), rel=1e-4)
    assert metrics["policy/kl_ref"] > 0
    assert not unknown_metrics(metrics)


@pytest.mark.parametrize("name", ["ppo", "dr_grpo"])
def test_gradients_do_not_depend_on_when_scores_come_back(actors: Actors, name: str) -> None:
    policy = PlainLearner(actors.path, LearnerConfig(), TEMPERATURE)
    prompts = make_samples(policy, GROUPS * 4, seed=7)
    trained = [actors.learners] + ([actors.critic] if name == "ppo" else [])
    gradients = []
    for slow in (0, 1):  # first one reference worker holds the others up, then the other
        for i, actor in enumerate(actors.reference.actors):
            ray.get(actor.dawdle.remote(0.05 if i == slow else 0.0))
        actors.update(prompts, (0.0, 0.0), name=name, kl_coef=KL_COEF, kl_in="reward")
        gradients.append([call(group, "gradient")[0] for group in trained])
    call(actors.reference, "dawdle", 0.0)
    for gradient, other in zip(*gradients, strict=True):
        assert norm(gradient) > 0
        assert all((gradient[key] == other[key]).all() for key in gradient)


def test_the_gradients_of_ppo_do_not_depend_on_who_comes_in_first(actors: Actors) -> None:
    policy = PlainLearner(actors.path, LearnerConfig(), TEMPERATURE)
    prompts = make_samples(policy, GROUPS * 2, seed=9)
    gradients = []
    for order in (prompts, prompts[::-1]):
        actors.update(order, (0.0, 0.0), name="ppo")
        gradients.append([call(group, "gradient")[0] for group in (actors.learners, actors.critic)])
    for gradient, other in zip(*gradients, strict=True):
        assert norm(gradient) > 0
        assert distance(gradient, other) <= 1e-6 * norm(gradient)


def test_a_critic_does_not_learn_from_what_is_not_finite(actors: Actors) -> None:
    policy = PlainLearner(actors.path, LearnerConfig(), TEMPERATURE)
    prompts = make_samples(policy, GROUPS, seed=8)
    prompts[0][0].reward = np.inf
    micro_batch = micro_batch_of(prompts[1])
    before = call(actors.critic, "values", micro_batch)[0]
    result = actors.update(prompts, name="ppo")
    assert (result.skipped, result.critic_skipped) == ("not_finite", "not_finite")
    assert (call(actors.critic, "values", micro_batch)[0] == before).all()


def test_the_value_loss_is_clipped_around_the_scored_value(actors: Actors, tmp_path: Path) -> None:
    call(actors.critic, "export", str(tmp_path))
    critic = PlainCritic(tmp_path)
    policy = PlainLearner(actors.path, LearnerConfig(), TEMPERATURE)
    samples = make_samples(policy, GROUPS[:1], seed=5)[0]
    random = np.random.default_rng(0)
    values = torch.cat([critic.values(sample) for sample in samples])
    # On both sides of the values, mostly further away than the clip allows.
    old, returns = (
        (values.detach().numpy() + random.normal(size=len(values))).astype(np.float32) for _ in range(2)
    )
    scales = random.uniform(size=len(samples)).astype(np.float32)
    old64, returns64 = torch.from_numpy(old).double(), torch.from_numpy(returns).double()
    near = old64 + (values - old64).clamp(-CLIP, CLIP)
    loss = 0.5 * torch.maximum((values - returns64) ** 2, (near - returns64) ** 2)
    per_token = np.repeat(scales, [sample.response_length for sample in samples])
    expected = critic.gradient((loss * torch.from_numpy(per_token)).sum())
    unclipped = critic.gradient(
        (
            0.5
            * (torch.cat([critic.values(r) for r in samples]) - returns64) ** 2
            * torch.from_numpy(per_token)
        ).sum()
    )

    zeros = ValueTargets(old, returns, np.zeros_like(scales))
    targets = [ValueTargets(old, returns, scales)] * actors.sharing + [zeros]
    arguments = [(micro_batch_of(samples), each) for each in targets]
    refs = actors.critic.send_each("accumulate", arguments[: len(actors.critic)])
    asyncio.run(actors.critic.wait(refs, "accumulate", LIMIT_S))
    call(actors.critic, "step", 0.0)
    gradient = call(actors.critic, "gradient")[0]
    assert distance(gradient, expected) < 1e-5 * norm(expected)
    assert distance(gradient, unclipped) > 1e-2 * norm(expected)


def test_the_critic_comes_back_from_its_checkpoint(actors: Actors, tmp_path: Path) -> None:
    policy = PlainLearner(actors.path, LearnerConfig(), TEMPERATURE)
    prompts = make_samples(policy, GROUPS, seed=4)
    micro_batch = micro_batch_of(prompts[0])
    actors.update(prompts, name="ppo")
    saved = call(actors.critic, "values", micro_batch)[0]
    call(actors.critic, "save", str(tmp_path / "state"))
    actors.update(prompts, name="ppo")
    moved = call(actors.critic, "values", micro_batch)[0]
    assert np.abs(moved - saved).max() > 1e-3
    call(actors.critic, "load", str(tmp_path / "state"))
    assert (call(actors.critic, "values", micro_batch)[0] == saved).all()
    actors.update(prompts, name="ppo")  # with the optimizer's state too, the same step is taken
    assert np.abs(call(actors.critic, "values", micro_batch)[0] - moved).max() < 1e-5


def test_reference_workers_share_the_micro_batches_of_a_kl_loss(actors: Actors) -> None:
    policy = PlainLearner(actors.path, LearnerConfig(), TEMPERATURE)
    before = np.array(call(actors.reference, "micro_batches"))
    result = actors.update(
        make_samples(policy, GROUPS, seed=6), name="grpo", kl_coef=KL_COEF, kl_estimator="k3"
    )
    scored = np.array(call(actors.reference, "micro_batches")) - before
    assert scored.sum() >= 4
    assert abs(scored[0] - scored[1]) <= 1
    assert result.metrics["policy/kl_ref"] > 0


TINY = Path(__file__).with_name("tiny.yaml")
QUIET = ["run.steps=3", "reference.num_cpus=0.5", "critic.num_cpus=0.5"]


def train(
    tmp_path: Path, *words: str, resume: Path | None = None
) -> tuple[list[dict[str, Any]], set[str], Path]:
    """A run of the driver: its lines, the classes of the actors it made, its folder."""
    reward_function = tmp_path / "parity.py"
    reward_function.write_text("def grade(response, ground_truth):\n    return len(response) % 2 == 0\n")
    config = load_config(
        TINY, [*QUIET, f"run.dir={tmp_path}", f"reward.function=python:{reward_function}:grade", *words]
    )
    prepared = prepare(config, tokenizer_path(config.model.path))
    prepared = replace(prepared, model_path=str(fresh_model(parse_name("mini:t-fresh"))))
    folder = RunFolder.create(config.run.dir, config.run.name) if resume is None else RunFolder(resume)
    before = set(ray_state.actors())
    with Progress(config.run.steps) as progress:
        driver = Driver(config, prepared, folder, progress, quiet=True)
        asyncio.run(driver.run(Cluster.connect(ClusterConfig())))
    classes = {info["ActorClassName"] for key, info in ray_state.actors().items() if key not in before}
    return folder.read_metrics(), classes, folder.root


def test_a_run_of_ppo(ray_cluster: Cluster, tmp_path: Path) -> None:
    words = ("algorithm.name=ppo", "critic.learning_rate=1e-3")
    lines, classes, root = train(tmp_path, *words)
    assert "CriticWorker" in classes
    assert "ReferenceWorker" not in classes
    for line in lines:
        assert not unknown_metrics(line)
        assert line["critic/value_loss"] > 0
        assert line["critic/grad_norm"] > 0
        assert line["policy/effective_sample_size"] == pytest.approx(1, abs=1e-3)
    assert lines[0]["critic/value_mean"] == 0  # the head is zero as training starts
    assert lines[0]["critic/explained_variance"] == pytest.approx(0, abs=1e-9)
    assert lines[2]["critic/value_mean"] > 0
    critic = AutoModelForTokenClassification.from_pretrained(root / "checkpoints/step-000003/critic")
    assert critic.score.weight.any()

    lines, _, _ = train(tmp_path, *words, "run.steps=4", resume=root)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[3]["critic/value_mean"] > 0  # a new critic would say 0


@pytest.mark.parametrize("kl_in", [pytest.param("loss", marks=pytest.mark.long), "reward"])
def test_a_run_of_grpo_with_kl(ray_cluster: Cluster, tmp_path: Path, kl_in: str) -> None:
    lines, classes, _ = train(
        tmp_path,
        "algorithm.name=grpo",
        "algorithm.kl_coef=0.1",
        f"algorithm.kl_in={kl_in}",
        "reference.num_workers=2",
    )
    assert "ReferenceWorker" in classes
    assert "CriticWorker" not in classes
    assert lines[0]["policy/kl_ref"] == pytest.approx(0, abs=1e-5)
    assert lines[2]["policy/kl_ref"] > 1e-5
    for line in lines:
        assert not unknown_metrics(line)
        assert line["optim/grad_norm"] > 0


def test_no_actor_that_no_term_asks_for(ray_cluster: Cluster, tmp_path: Path) -> None:
    lines, classes, root = train(tmp_path, "algorithm.name=sft", "group_size=0", "evaluation.sets={}")
    assert classes == {"LearnerWorker"}
    assert not any(name.startswith("critic/") for name in lines[0])
    assert "policy/kl_ref" not in lines[0]
    assert not (root / "checkpoints/step-000003/critic").exists()
    assert json.loads((root / "summary.json").read_text())["steps"] == 3
