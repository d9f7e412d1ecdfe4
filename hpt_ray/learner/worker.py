"""The learner worker: a Ray actor that is one DeepSpeed rank of the policy.

It knows packs and an estimator that turns scored packs into a loss; it knows no algorithm's name, no
question, no reward.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpt_ray.config.schema import LearnerConfig, ModelConfig
from hpt_ray.learner.rank import RankWorker, hf_name
from hpt_ray.records import Pack


@dataclass(frozen=True)
class LearnerSpec:
    """What a rank is made from."""

    model: ModelConfig
    model_path: str
    learner: LearnerConfig
    estimator: Any  # hpt_ray.estimators.Estimator, or None for a rank that only scores
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

    def accumulate(self, pack: Pack, reference: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Forward and backward of one pack into the step's gradient. Collective (equal counts).

        `reference` is the scorer's answer for this pack: log π_ref and entropy [R].
        """
        from hpt_ray.learner.loss import pack_loss
        from hpt_ray.learner.scorer import ScorerInput

        begin = time.perf_counter()
        rows = ScorerInput.from_pack(pack, temperature=self._spec.temperature, device=self._engine.device)
        estimator = self._spec.estimator
        logp, entropy = self._engine.forward(rows, entropy_grad=estimator.entropy_coef != 0)
        logp_ref = None if reference is None else reference[0]
        loss, stats = pack_loss(estimator, pack, logp, entropy, logp_ref)
        self._engine.backward(loss)
        if not pack.is_dummy:
            for name, (total, count) in stats.items():
                self._report.count(name, float(total), float(count))
            self._count_gap(pack, logp.detach().float().cpu().numpy())
            self._report.num_tokens += pack.num_tokens
        self._report.busy_s += time.perf_counter() - begin

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

        with torch.no_grad():
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

    def connect(self, carrier: str, init_info: dict) -> None:
        """Rank 0 becomes the sender of the weight-transfer group; the others have no part in it."""
        from hpt_ray.weight_sync.carriers import make_sender

        self._sender = make_sender(carrier, init_info) if self._rank == 0 else None

    def send_weights(self) -> None:
        """Gather (all ranks) and send (rank 0) every weight. Collective."""
        tensors = (tensor for _, tensor in self._engine.full_parameters())
        if self._sender is not None:
            self._sender.send(self.weight_metas(), tensors)
        for _ in tensors:  # the other ranks help to gather
            pass
