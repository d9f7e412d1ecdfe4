"""No micro-batch reads a number off the device, for which a GPU would have to be empty first.

The device here is torch's without values: reading one, a mask as an index, or a copy to the host raises.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from hpt_ray.algorithms import BatchShape, make_estimator
from hpt_ray.data.mini.model import model_config
from hpt_ray.learner.base import UpdateReport
from hpt_ray.learner.critic import CriticWorker
from hpt_ray.learner.logprobs import TokenScorer
from hpt_ray.learner.model import ValueScorer
from hpt_ray.learner.packing import make_micro_batch
from hpt_ray.learner.policy import LearnerWorker, OldPolicy
from hpt_ray.learner.scoring import weight_samples
from hpt_ray.learner.sequence_parallel import ALONE
from hpt_ray.types import MicroBatch, Sample, ValueTargets

METHODS = [
    ("grpo", {"kl_coef": 0.1, "entropy_coef": 0.01}, False),
    ("grpo", {"correction": "sequence_mask"}, True),
    ("gspo", {}, True),
    ("srft", {}, True),
]


class Engine:
    """One rank without an optimizer, on the device without values."""

    device = torch.device("meta")

    def __init__(self, module: torch.nn.Module):
        self.forward = self.module = module

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def rank(kind: type, module: torch.nn.Module, **spec):
    worker = object.__new__(kind)  # without the process and the group of ranks that it is in
    worker._engine, worker._spec = Engine(module), SimpleNamespace(**spec)
    worker._report, worker._unread, worker._sequence = UpdateReport(), [], ALONE
    return worker


def micro_batch(estimator) -> MicroBatch:
    samples = [
        Sample("q", np.zeros(3 + length, np.int32), 3, np.zeros(length, np.float32), is_demo, float(i % 2), 0)
        for i, (length, is_demo) in enumerate([(5, False), (1, False), (60, False), (7, True)])
    ]
    weighed = weight_samples(estimator, samples, BatchShape(1, 3, 60)).samples
    return make_micro_batch(weighed)


@pytest.mark.parametrize(("name", "options", "recompute"), METHODS)
def test_a_policys_micro_batch_reads_nothing(name: str, options: dict, recompute: bool) -> None:
    estimator = make_estimator(name, **options)
    with Engine.device:
        model = AutoModelForCausalLM.from_config(model_config("t", "qwen2"), attn_implementation="segments")
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    worker = rank(LearnerWorker, TokenScorer(model.train()), estimator=estimator, temperature=0.7)
    batch = micro_batch(estimator)
    scores = np.zeros_like(batch.old_logprobs)
    for old in OldPolicy:
        worker.accumulate(batch, (scores, scores), old)
    assert all(p.grad is not None for p in model.parameters())
    assert worker._report.num_tokens == 3 * batch.num_tokens
    assert worker._unread
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        worker._unread[0]()


def test_a_critics_micro_batch_reads_nothing() -> None:
    config = model_config("t", "qwen2")
    config.num_labels = 1
    with Engine.device:
        model = AutoModelForTokenClassification.from_config(config, attn_implementation="segments")
    worker = rank(CriticWorker, ValueScorer(model), value_clip=0.2)
    batch = replace(micro_batch(make_estimator("sft")), is_dummy=False)
    per_token = np.zeros_like(batch.old_logprobs)
    targets = ValueTargets(per_token, per_token, np.ones(len(batch.response_lengths), np.float32))
    worker.accumulate(batch, targets)
    assert model.score.weight.grad is not None
    assert len(worker._unread) == 1
