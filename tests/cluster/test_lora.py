"""Adapters in the learner (real actors, DeepSpeed on gloo, two ranks) against plain PyTorch, which merges them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pair import MIXED, SAMPLES, TEMPERATURE, C, N, starting
from plain import PlainLearner, distance, make_samples, norm
from probe import call, micro_batch_of

from hpt_ray.algorithms import make_estimator
from hpt_ray.config.training import LearnerConfig, LoRAConfig
from hpt_ray.errors import UserError
from hpt_ray.types import Sample

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LORA = LoRAConfig(rank=4, alpha=8.0)
KL = 0.3
ESTIMATOR = make_estimator("dr_grpo", rollout_clip="none", kl_coef=KL, kl_estimator="k3")
ROLLOUTS = [(rewards, False) for rewards, _ in MIXED if rewards]
RATE = 0.02
# ZeRO stage, and ranks that share a micro-batch.
LAYOUTS = [*(pytest.param(stage, 1, marks=pytest.mark.long) for stage in (0, 1)), (2, 1), (3, 1), (3, 2)]


@pytest.fixture(scope="module")
def start(ray_cluster, tiny_model):
    with starting(tiny_model) as start:
        yield start


def grpo_loss(plain: PlainLearner, samples: list[Sample], frozen: PlainLearner) -> torch.Tensor:
    """Dr. GRPO without a clip, and KL (k3) to the base."""
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        logprob, _ = plain.score(sample)
        with torch.no_grad():
            d = logprob - frozen.score(sample)[0]
        mean = np.mean([other.reward for other in samples if other.group == sample.group])
        ratio = (logprob - torch.from_numpy(sample.old_logprobs)).exp()
        d = logprob - (logprob - d).detach()
        policy = -ratio.sum() * (sample.reward - mean)
        total = total + (policy + KL * ((-d).exp() - 1 + d).sum()) / (N * SAMPLES * C)
    return total


@pytest.mark.parametrize(("stage", "sharing"), LAYOUTS)
def test_steps_checkpoint_and_export(start, tiny_model, tmp_path, stage, sharing):
    """Two steps equal plain PyTorch's; from a checkpoint of adapters after the first, the second is the same again."""
    path = tiny_model("qwen2", True)
    frozen = PlainLearner(path, LearnerConfig(), TEMPERATURE)
    pair = start(2, stage, lora=LORA, sequence_parallel=sharing)
    samples = make_samples(frozen, ROLLOUTS, seed=9)[0]
    asked = micro_batch_of(samples)
    base = frozen.parameters()
    assert distance(call(pair.ranks, "parameters")[0], base) == 0

    def loss(plain: PlainLearner, samples: list[Sample]) -> torch.Tensor:
        return grpo_loss(plain, samples, frozen)

    # The ranks are their own reference.
    options = {"estimator": ESTIMATOR, "rate": RATE, "reference": pair.ranks}
    _, first = pair.step(make_samples(pair.plain, ROLLOUTS, seed=1), loss, **options)
    assert all("lora_" in name for name in first)
    assert norm({name: g for name, g in first.items() if name.endswith("lora_B")}) > 1e-3

    call(pair.ranks, "save", str(tmp_path / "state"))
    saved = sum(file.stat().st_size for file in (tmp_path / "state").rglob("*.pt"))
    assert saved < 4 * sum(p.size for p in base.values())  # less than the weights alone
    later = make_samples(pair.plain, ROLLOUTS, seed=2)
    _, gradient = pair.step(later, loss, **options)
    assert norm({name: g for name, g in gradient.items() if name.endswith("lora_A")}) > 1e-3
    after = call(pair.ranks, "trained")[0]

    # The merged weights are the model that was trained, and without the adapters it is still the base.
    weights = call(pair.ranks, "parameters")[0]
    assert distance(weights, base) > 0.01 * norm(base)
    call(pair.ranks, "export", str(tmp_path / "hf"))
    exported = PlainLearner(tmp_path / "hf", LearnerConfig(), TEMPERATURE)
    assert distance(exported.parameters(), weights) == 0
    for method, plain in (("logprobs", exported), ("reference_logprobs", frozen)):
        expected = torch.cat([plain.score(sample)[0] for sample in samples]).detach().numpy()
        for found, _ in call(pair.ranks, method, asked):
            assert np.abs(found - expected).max() < 1e-5, method

    pair = start(2, stage, lora=LORA, sequence_parallel=sharing)
    call(pair.ranks, "load", str(tmp_path / "state"))
    pair.learn(later, **options)
    assert distance(call(pair.ranks, "gradient")[0], gradient) == 0
    assert distance(call(pair.ranks, "trained")[0], after) == 0


def test_a_checkpoint_of_other_adapters_is_refused(start, tmp_path):
    pair = start(2, 2, lora=LORA)
    call(pair.ranks, "save", str(tmp_path / "state"))
    for other in (LoRAConfig(rank=2), LoRAConfig()):
        ranks = start(2, 2, lora=other).ranks
        with pytest.raises(UserError, match=r"Set learner\.lora and model\.path as they were"):
            call(ranks, "load", str(tmp_path / "state"))


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_another_number_of_ranks_goes_on(start, tmp_path, stage):
    pair = start(2, stage, lora=LORA)
    prompts = [make_samples(pair.plain, MIXED, seed=seed) for seed in (1, 2)]
    pair.learn(prompts[0], rate=RATE)
    call(pair.ranks, "save", str(tmp_path / "state"))
    pair.learn(prompts[1], rate=RATE)
    alone = start(1, stage, lora=LORA)
    call(alone.ranks, "load", str(tmp_path / "state"))
    alone.learn(prompts[1], rate=RATE)
    expected = call(pair.ranks, "trained")[0]
    assert distance(call(alone.ranks, "trained")[0], expected) < 1e-3 * norm(expected)
