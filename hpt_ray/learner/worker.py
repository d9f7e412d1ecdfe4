"""The learner worker: a Ray actor that is one DeepSpeed rank.

It knows packs and an estimator that turns scored packs into a loss; it knows no algorithm's name, no
question, no reward. All ranks get the same calls in the same order.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpt_ray.cluster.network import free_port
from hpt_ray.cluster.process import prepare_process
from hpt_ray.config.schema import LearnerConfig, ModelConfig
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


@dataclass(slots=True)
class UpdateReport:
    """What one rank has to say about one update: sums to be added over ranks, and its own times."""

    stats: dict[str, tuple[float, float]]  # name -> (sum, count)
    peaks: dict[str, float]  # name -> maximum
    num_tokens: int
    busy_s: float
    grad_norm: float = 0.0


class LearnerWorker:
    """One rank of the policy's learner."""

    def __init__(self, rank: int, world_size: int, spec: LearnerSpec, log_file: str | None):
        self._gpu = spec.learner.num_gpus > 0
        prepare_process(
            threads=spec.learner.num_cpus,
            log_file=log_file,
            environment={} if self._gpu else {"DS_ACCELERATOR": "cpu"},
        )
        self._rank, self._world_size, self._spec = rank, world_size, spec
        self._sender: Any = None
        self._report = UpdateReport({}, {}, 0, 0.0)

    def rendezvous(self) -> tuple[str, int]:
        """An address on this node where the ranks, or sender and receivers, can meet."""
        import ray

        host = ray.util.get_node_ip_address()
        return host, free_port(host)

    def start(self, host: str, port: int) -> None:
        """Join the other ranks and load the model. Collective."""
        import torch

        from hpt_ray.learner.engine import DeepSpeedEngine, join_ranks
        from hpt_ray.learner.model import load_policy
        from hpt_ray.learner.scorer import TokenScorer

        spec = self._spec
        torch.set_num_threads(max(1, int(spec.learner.num_cpus)))
        random.seed(spec.seed)
        np.random.seed(spec.seed % 2**32)
        torch.manual_seed(spec.seed)
        join_ranks(
            host,
            port,
            rank=self._rank,
            world_size=self._world_size,
            gpu=self._gpu,
            timeout_s=spec.learner.timeout_s,
        )
        model = load_policy(spec.model, spec.model_path, seed=spec.seed)
        if spec.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        self._engine = DeepSpeedEngine(
            TokenScorer(model), spec.learner, dtype=spec.model.dtype, world_size=self._world_size
        )

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
            self._count(stats, pack, logp, entropy)
        self._report.num_tokens += 0 if pack.is_dummy else pack.num_tokens
        self._report.busy_s += time.perf_counter() - begin

    def _count(self, stats: dict[str, tuple[Any, Any]], pack: Pack, logp: Any, entropy: Any) -> None:
        logp, entropy = logp.detach().float().cpu().numpy(), entropy.detach().float().cpu().numpy()
        demo = np.repeat(pack.is_demo, pack.response_lengths)
        sums: dict[str, tuple[float, float]] = {
            name: (float(total), float(count)) for name, (total, count) in stats.items()
        }
        sums["policy/entropy"] = (float(entropy.sum()), entropy.size)
        sums["learner/demo_loss"] = (float(-logp[demo].sum()), int(demo.sum()))
        if not demo.all():
            gap = np.abs(logp[~demo] - pack.logp_old[~demo])
            sums["policy/logp_gap_mean"] = (float(gap.sum()), gap.size)
            peaks = self._report.peaks
            peaks["policy/logp_gap_max"] = max(peaks.get("policy/logp_gap_max", 0.0), float(gap.max()))
        for name, (total, count) in sums.items():
            old_total, old_count = self._report.stats.get(name, (0.0, 0.0))
            self._report.stats[name] = (old_total + total, old_count + count)

    def step(self, learning_rate: float) -> UpdateReport:
        """Reduce, clip, step; what the packs since the last step came to. Collective."""
        begin = time.perf_counter()
        self._engine.reduce()
        report, self._report = self._report, UpdateReport({}, {}, 0, 0.0)
        report.grad_norm = self._engine.step(learning_rate)
        report.busy_s += time.perf_counter() - begin
        return report

    def reduced_gradients(self) -> dict[str, Any] | None:
        """Reduce and return the step's full gradient by parameter name (rank 0), as numpy. Collective.

        For tests and replay: instead of `step`, which must not follow without new packs.
        """
        self._engine.reduce()
        gradients = self._engine.gradients()
        return {_hf_name(n): g.float().numpy() for n, g in gradients.items()} if self._rank == 0 else None

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
            TensorMeta(_hf_name(name), str(dtype).removeprefix("torch."), shape)
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

    def export(self, folder: str) -> None:
        """Write the Hugging Face folder (rank 0). Collective."""
        from hpt_ray.learner.model import export_policy

        state = {}
        for name, tensor in self._engine.full_parameters():
            if self._rank == 0:
                state[_hf_name(name)] = tensor.to("cpu", copy=True)
        if self._rank == 0:
            export_policy(self._engine.module.model, state, self._spec.model_path, Path(folder))

    # -- checkpoints -------------------------------------------------------------------------------

    def save(self, folder: str) -> None:
        """Weights, optimizer state and random state of every rank. Collective."""
        import torch

        self._engine.save(Path(folder))
        states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}
        torch.save(states, Path(folder) / f"random-{self._rank}.pt")

    def load(self, folder: str) -> None:
        """Collective."""
        import torch

        self._engine.load(Path(folder))
        file = Path(folder) / f"random-{self._rank}.pt"
        states = torch.load(file, weights_only=False)
        torch.set_rng_state(states["torch"])
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])


def _hf_name(name: str) -> str:
    """The name without the scorer's own prefix."""
    return name.removeprefix("model.")
