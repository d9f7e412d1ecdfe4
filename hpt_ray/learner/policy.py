"""The learner worker: a Ray actor that is one DeepSpeed rank of the policy.

In: micro-batches, and an estimator that turns scored ones into a loss. Out: gradients, weights, log-probs. It knows
no algorithm's name, no prompt, no reward.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpt_ray.learner.base import RankSpec, RankWorker, hf_name
from hpt_ray.types import MicroBatch


class OldPolicy(enum.StrEnum):
    """Whose log-probs log π_old of a micro-batch's rollouts are."""

    SAMPLER = "sampler"  # those in the micro-batch
    SCORED = "scored"  # those in the micro-batch, which the learner gave before the step's first update
    NOW = "now"  # the learner's own of this very pass: its weights are those from before the first update


@dataclass(frozen=True)
class LearnerSpec(RankSpec):
    """With the loss, and how rollouts were sampled."""

    estimator: Any  # hpt_ray.algorithms.Estimator, or None until `train_with`
    temperature: float  # rollouts are scored at the temperature they were sampled at


class LearnerWorker(RankWorker[LearnerSpec]):
    """One rank of the policy's learner."""

    def __init__(self, rank: int, world_size: int, spec: LearnerSpec, log_file: str | None):
        super().__init__(rank, world_size, spec, log_file)
        self._sender: Any = None

    def _module(self) -> Any:
        from hpt_ray.learner.logprobs import TokenScorer
        from hpt_ray.learner.model import Published, load_policy

        model = load_policy(self._spec.model, self._spec.model_path, seed=self._spec.seed)
        self._as_published = Published(model)
        return TokenScorer(model)

    # -- training ----------------------------------------------------------------------------------

    def train_with(self, estimator: Any) -> None:
        """From the next micro-batch on, the loss is this estimator's."""
        self._spec = replace(self._spec, estimator=estimator)

    def accumulate(
        self,
        micro_batch: MicroBatch,
        reference: tuple[np.ndarray, np.ndarray] | None = None,
        old: OldPolicy = OldPolicy.SAMPLER,
    ) -> None:
        """Forward and backward of one micro-batch into the step's gradient. Collective (equal counts).

        `reference` is what the frozen policy gave for this micro-batch: log π_ref and entropy [R].
        """
        import torch

        from hpt_ray.learner.packing import micro_batch_loss

        with self._span("backward"):
            samples = self._input(micro_batch, self._spec.temperature)
            estimator = self._spec.estimator
            logprob, entropy = self._engine.forward(samples, entropy_grad=estimator.entropy_coef != 0)
            ref_logprobs = None if reference is None else reference[0]
            old_logprobs = (
                logprob.detach() if old is OldPolicy.NOW else torch.from_numpy(micro_batch.old_logprobs)
            )
            loss, stats = micro_batch_loss(
                estimator, micro_batch, logprob, entropy, old_logprobs, ref_logprobs
            )
            self._engine.backward(loss)
            if micro_batch.is_dummy or self._sequence.rank:
                return
            self._report.num_tokens += micro_batch.num_tokens
            self._at_step(self._count, stats, loss.detach())
            rollout = ~np.repeat(micro_batch.is_demo, micro_batch.response_lengths)
            if old is not OldPolicy.SCORED and rollout.any():
                sampled = micro_batch.old_logprobs[rollout]
                self._at_step(self._count_gap, logprob.detach(), rollout, sampled)

    def _count(self, stats: dict[str, tuple[Any, Any]], loss: Any) -> None:
        for name, (total, count) in stats.items():
            self._report.count(name, float(total), float(count))
        self._report.count("loss/total", float(loss), 0)  # a sum: the group counts 1

    def _count_gap(self, logprob: Any, rollout: np.ndarray, sampled: np.ndarray) -> None:
        """How far the learner's log-probs [R] are from the sampler's on rollouts."""
        gap = np.abs(logprob.float().cpu().numpy()[rollout] - sampled)
        self._report.count("policy/logprob_gap_mean", float(gap.sum()), gap.size)
        peaks = self._report.peaks
        peaks["policy/logprob_gap_max"] = max(peaks.get("policy/logprob_gap_max", 0.0), float(gap.max()))

    def logprobs(self, micro_batch: MicroBatch) -> tuple[np.ndarray, np.ndarray]:
        """log π_θ and entropy [R] of the micro-batch's response tokens, forward only. Collective under ZeRO 3."""
        from hpt_ray.learner.logprobs import score

        with self._span("score"):
            return score(self._engine.forward, self._input(micro_batch, self._spec.temperature))

    def reference_logprobs(self, micro_batch: MicroBatch) -> tuple[np.ndarray, np.ndarray]:
        """The same of the policy as training started, which this one is without its adapters. Collective as that."""
        from hpt_ray.learner.lora import adapters_off

        with adapters_off(self._engine.module):
            return self.logprobs(micro_batch)

    # -- weights out -------------------------------------------------------------------------------

    def weight_metas(self) -> list[Any]:
        """Name, dtype and shape of every weight, as checkpoints name them, in the order they are sent."""
        import torch

        from hpt_ray.weight_sync.buckets import TensorMeta

        return [
            TensorMeta(name, str(part.dtype).removeprefix("torch."), tuple(part.shape))
            for name, part in self._published(
                (name, torch.empty(shape, dtype=dtype, device="meta"))
                for name, dtype, shape in self._engine.parameter_shapes()
            )
        ]

    def _published(self, parameters: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        from hpt_ray.learner.lora import merged

        for name, parameter in merged(parameters, self._spec.learner.lora):
            yield from self._as_published.parts_of(hf_name(name), parameter)

    def _write_model(self, folder: Path, state: dict[str, Any], adapters: dict[str, Any]) -> None:
        """With the adapters once more in a folder of their own, as PEFT has them."""
        from hpt_ray.learner.lora import write_adapter

        super()._write_model(folder, state, adapters)
        if adapters:
            write_adapter(folder / "adapter", adapters, self._spec.learner.lora, self._spec.model.path)

    def join_transfer(self, rendezvous: Any) -> None:
        """Become place 0 of the transfer group that meets there. Those who send."""
        from hpt_ray.weight_sync.group import WeightSender

        if self._sender is None:
            self._sender = WeightSender(self._engine.device)
        self._sender.join(rendezvous)

    def send_weights(self, bucket_bytes: int, keep: bool) -> None:
        """Gather (all ranks) and send (who joined) every weight; with `keep`, also into host memory. Collective."""
        parameters = self._engine.full_parameters(bucket_bytes)
        num_buffers = 1 if self._spec.learner.zero_stage == 3 else 2  # what is gathered is the other bucket
        with self._span("send weights"):
            try:
                if self._sender is not None:
                    self._sender.send(
                        self.weight_metas(),
                        (part for _, part in self._published(parameters)),
                        bucket_bytes=bucket_bytes,
                        num_buffers=num_buffers,
                        keep=keep,
                    )
            finally:
                # The other ranks help to gather, to the end, also where sending broke off.
                for _ in parameters:
                    pass

    def resend_weights(self) -> None:
        """Send what `send_weights` kept. Those who send."""
        with self._span("send weights"):
            self._sender.send_copy()
