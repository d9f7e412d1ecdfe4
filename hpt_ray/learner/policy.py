"""The learner worker: a Ray actor that is one DeepSpeed rank of the policy.

It knows packs and an estimator that turns scored packs into a loss; it knows no algorithm's name, no
question, no reward.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpt_ray.config.schema import LearnerConfig, ModelConfig
from hpt_ray.learner.base import RankWorker, hf_name
from hpt_ray.types import Pack


class OldPolicy(enum.StrEnum):
    """Whose log-probs log π_old of a pack's rollouts are."""

    SAMPLER = "sampler"  # those in the pack
    SCORED = "scored"  # those in the pack, which the learner gave before the step's first update
    NOW = "now"  # the learner's own of this very pass: its weights are those from before the first update


@dataclass(frozen=True)
class LearnerSpec:
    """What a rank is made from."""

    model: ModelConfig
    model_path: str
    learner: LearnerConfig
    estimator: Any  # hpt_ray.algorithms.Estimator, or None until `train_with`
    temperature: float  # rollouts are scored at the temperature they were sampled at
    seed: int


class LearnerWorker(RankWorker[LearnerSpec]):
    """One rank of the policy's learner."""

    def __init__(self, rank: int, world_size: int, spec: LearnerSpec, log_file: str | None):
        super().__init__(rank, world_size, spec, log_file)
        self._sender: Any = None

    def _module(self) -> Any:
        from hpt_ray.learner.model import load_policy
        from hpt_ray.learner.scorer import TokenScorer

        return TokenScorer(load_policy(self._spec.model, self._spec.model_path, seed=self._spec.seed))

    # -- training ----------------------------------------------------------------------------------

    def train_with(self, estimator: Any) -> None:
        """From the next pack on, the loss is this estimator's."""
        self._spec = replace(self._spec, estimator=estimator)

    def accumulate(
        self,
        pack: Pack,
        reference: tuple[np.ndarray, np.ndarray] | None = None,
        old: OldPolicy = OldPolicy.SAMPLER,
    ) -> None:
        """Forward and backward of one pack into the step's gradient. Collective (equal counts).

        `reference` is the scorer's answer for this pack: log π_ref and entropy [R].
        """
        import torch

        from hpt_ray.learner.loss import pack_loss
        from hpt_ray.learner.scorer import ScorerInput

        with self._span("backward"):
            rows = ScorerInput.from_pack(pack, temperature=self._spec.temperature, device=self._engine.device)
            estimator = self._spec.estimator
            logp, entropy = self._engine.forward(rows, entropy_grad=estimator.entropy_coef != 0)
            logp_ref = None if reference is None else reference[0]
            logp_old = logp.detach() if old is OldPolicy.NOW else torch.from_numpy(pack.logp_old)
            loss, stats = pack_loss(estimator, pack, logp, entropy, logp_old, logp_ref)
            self._engine.backward(loss)
            if not pack.is_dummy:
                for name, (total, count) in stats.items():
                    self._report.count(name, float(total), float(count))
                if old is not OldPolicy.SCORED:
                    self._count_gap(pack, logp.detach().float().cpu().numpy())
                self._report.num_tokens += pack.num_tokens

    def _count_gap(self, pack: Pack, logp: np.ndarray) -> None:
        """How far the learner's log-probs are from the sampler's."""
        rollout = ~np.repeat(pack.is_demo, pack.response_lengths)
        if rollout.any():
            gap = np.abs(logp[rollout] - pack.logp_old[rollout])
            self._report.count("policy/logp_gap_mean", float(gap.sum()), gap.size)
            peaks = self._report.peaks
            peaks["policy/logp_gap_max"] = max(peaks.get("policy/logp_gap_max", 0.0), float(gap.max()))

    def logprobs(self, pack: Pack) -> tuple[np.ndarray, np.ndarray]:
        """log π_θ and entropy [R] of the pack's response tokens, forward only. Collective under ZeRO 3."""
        import torch

        from hpt_ray.learner.scorer import ScorerInput

        with self._span("score"), torch.no_grad():
            rows = ScorerInput.from_pack(pack, temperature=self._spec.temperature, device=self._engine.device)
            logp, entropy = self._engine.forward(rows)
        return logp.float().cpu().numpy(), entropy.float().cpu().numpy()

    # -- weights out -------------------------------------------------------------------------------

    def weight_metas(self) -> list[Any]:
        """Name, dtype and shape of every weight, as Hugging Face names them, in the order they are sent."""
        from hpt_ray.weight_sync.buckets import TensorMeta

        return [
            TensorMeta(hf_name(name), str(dtype).removeprefix("torch."), shape)
            for name, dtype, shape in self._engine.parameter_shapes()
        ]

    def join_transfer(self, meeting: Any) -> None:
        """Become place 0 of the transfer group that meets there. Rank 0 only."""
        from hpt_ray.weight_sync.sender import WeightSender

        if self._sender is None:
            self._sender = WeightSender(self._engine.device)
        self._sender.join(meeting)

    def send_weights(self, bucket_bytes: int, keep: bool) -> None:
        """Gather (all ranks) and send (rank 0) every weight; with `keep`, also into host memory. Collective."""
        tensors = (tensor for _, tensor in self._engine.full_parameters(bucket_bytes))
        num_buffers = 1 if self._spec.learner.zero_stage == 3 else 2  # what is gathered is the other bucket
        with self._span("send weights"):
            try:
                if self._rank == 0:
                    self._sender.send(
                        self.weight_metas(),
                        tensors,
                        bucket_bytes=bucket_bytes,
                        num_buffers=num_buffers,
                        keep=keep,
                    )
            finally:
                # The other ranks help to gather, to the end, also where sending broke off.
                for _ in tensors:
                    pass

    def resend_weights(self) -> None:
        """Send what `send_weights` kept. Rank 0 only."""
        with self._span("send weights"):
            self._sender.send_copy()
