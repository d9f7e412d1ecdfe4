"""One rank of a DeepSpeed group as a Ray actor: what the policy's and the critic's ranks have in common.

Comes up, joins the other ranks, holds a module with its optimizer, steps, exports, saves and loads. What
the module is and what a micro-batch does to it is the subclass's. All ranks get the same calls in the same order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hpt_ray.cluster.meeting import Meeting, open_meeting
from hpt_ray.cluster.process import importing, memory_mb, prepare_process
from hpt_ray.config.schema import ModelConfig
from hpt_ray.config.training import LearnerConfig
from hpt_ray.errors import failures_of
from hpt_ray.types import MicroBatch

if TYPE_CHECKING:
    from hpt_ray.learner.deepspeed_state import LocalState
    from hpt_ray.learner.scorer_input import ScorerInput

# DeepSpeed's own calls unpickle whatever a file names; this goes before them (`unpickling.only`).
TENSORS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}


@dataclass(frozen=True)
class RankSpec:
    """What every rank is made from; a subclass's worker may need more."""

    model: ModelConfig
    model_path: str
    learner: LearnerConfig
    seed: int


Spec = TypeVar("Spec", bound=RankSpec)


@dataclass(slots=True)
class UpdateReport:
    """What one rank has to say about one update: sums to be added over ranks, and its own times.

    `spans` hold all its work since the report before: (name, start, end) in seconds of `time.time()`.
    """

    stats: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> (sum, count)
    peaks: dict[str, float] = field(default_factory=dict)  # name -> maximum
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    num_tokens: int = 0
    grad_norm: float = 0.0
    skipped: str | None = None  # why the weights were left as they were: "not_finite" or "grad_norm"

    @property
    def busy_s(self) -> float:
        return sum(end - start for _, start, end in self.spans)

    def count(self, name: str, total: float, count: float) -> None:
        """Add a sum over `count` things to the name's."""
        old_total, old_count = self.stats.get(name, (0.0, 0.0))
        self.stats[name] = (old_total + total, old_count + count)


class RankWorker(Generic[Spec]):
    """One rank. Subclasses make the module, whose `model` is a `PreTrainedModel`, and feed it micro-batches."""

    def __init__(self, rank: int, world_size: int, spec: Spec, log_file: str | None):
        self._gpu = spec.learner.num_gpus > 0
        prepare_process(
            threads=spec.learner.num_cpus,
            log_file=log_file,
            environment=TENSORS_ONLY | ({} if self._gpu else {"DS_ACCELERATOR": "cpu"}),
        )
        self._rank, self._world_size, self._spec = rank, world_size, spec
        self._report = UpdateReport()
        self._unread: list[Callable[[], None]] = []
        self._held: int | None = None

    def _at_step(self, read: Callable[..., None], *args: Any) -> None:
        """Read numbers off the device when the update is whole: each time before, a GPU would run empty."""
        self._unread.append(partial(read, *args))

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        """Tell the next report of this work."""
        start = time.time()
        try:
            yield
        finally:
            self._report.spans.append((name, start, time.time()))

    def _module(self) -> Any:
        """The module that is trained, as training starts."""
        raise NotImplementedError

    def rendezvous(self) -> Meeting | None:
        """Where the ranks are to meet: rank 0 is there from now on, the others have nothing to say."""
        import ray

        if self._rank > 0:
            return None
        meeting, self._held = open_meeting(ray.util.get_node_ip_address())
        return meeting

    def start(self, meeting: Meeting) -> None:
        """Join the other ranks and load the model. Collective."""
        with importing():
            import torch

            import hpt_ray.learner.model  # noqa: F401  (which `_module` needs)
            from hpt_ray.learner import random_state
            from hpt_ray.learner.deepspeed import DeepSpeedEngine, join_ranks
            from hpt_ray.learner.lora import add_adapters
            from hpt_ray.learner.sequence_parallel import check_model, make_sequence_ranks

        spec = self._spec
        torch.set_num_threads(max(1, int(spec.learner.num_cpus)))
        random_state.seed(spec.seed)
        join_ranks(
            meeting,
            self._held,
            rank=self._rank,
            world_size=self._world_size,
            gpu=self._gpu,
            timeout_s=spec.learner.timeout_s,
        )
        self._sequence = make_sequence_ranks(
            spec.learner.sequence_parallel, secret=meeting.secret, timeout_s=spec.learner.timeout_s
        )
        module = self._module()
        check_model(module.model, self._sequence.size)
        if spec.learner.lora.rank:
            add_adapters(module.model, spec.learner.lora, seed=spec.seed)
        if spec.learner.gradient_checkpointing:
            offload = spec.learner.offload_activations
            module.model.gradient_checkpointing_enable({"use_reentrant": False}, offload=offload)
        module.train()
        self._engine = DeepSpeedEngine(
            module, spec.learner, dtype=spec.model.dtype, world_size=self._world_size
        )

    # -- training ----------------------------------------------------------------------------------

    def _input(self, micro_batch: MicroBatch, temperature: float) -> ScorerInput:
        """What this rank runs its model on."""
        from hpt_ray.learner.scorer_input import ScorerInput

        return ScorerInput.from_micro_batch(
            micro_batch, temperature=temperature, device=self._engine.device, ranks=self._sequence
        )

    def step(self, learning_rate: float) -> UpdateReport:
        """Reduce, clip, step; what the micro-batches since the last step came to. Collective."""
        with self._span("step"):
            self._engine.reduce()
            for read in self._unread:
                read()
            self._unread.clear()
            self._report.grad_norm, self._report.skipped = self._engine.step(learning_rate)
            if self._spec.learner.base_pull:
                self._report.count("optim/base_distance_squared", *self._engine.base_distance())
        report, self._report = self._report, UpdateReport()
        report.peaks["memory/learner_mb"] = memory_mb()
        import torch  # the process has it by now

        if torch.cuda.is_initialized():
            report.peaks["memory/learner_gpu_mb"] = torch.cuda.max_memory_reserved() / 2**20
        return report

    def forget_optimizer(self) -> None:
        """Empty the optimizer's state; the weights stay."""
        self._engine.forget_optimizer()

    # -- on a GPU that an engine uses too ----------------------------------------------------------

    def visible_gpus(self) -> str:
        """What Ray lets this rank see, as CUDA names it."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def offload(self) -> None:
        """Optimizer state to host memory until `reload`; saving and sending weights go on as they do."""
        with self._span("offload"):
            self._engine.offload()

    def reload(self) -> None:
        with self._span("reload"):
            self._engine.reload()

    # -- weights and checkpoints -------------------------------------------------------------------

    def export(self, folder: str) -> list[str]:
        """Write the Hugging Face folder (rank 0); what could not be written, and why. Collective."""
        from hpt_ray.learner.lora import merged

        with self._span("export"):
            state: dict[str, Any] = {}
            adapters: dict[str, Any] = {}
            for name, tensor in merged(self._engine.full_parameters(), self._spec.learner.lora, adapters):
                if self._rank == 0:
                    state[hf_name(name)] = tensor.to("cpu", copy=True)
            if self._rank > 0:
                return []
            adapters = {hf_name(name): tensor for name, tensor in adapters.items()}
            return failures_of(lambda: self._write_model(Path(folder), state, adapters))

    def _write_model(self, folder: Path, state: dict[str, Any], adapters: dict[str, Any]) -> None:
        """The whole weights as a Hugging Face folder; `adapters` are in them already."""
        from hpt_ray.learner.model import export_policy

        export_policy(self._engine.module.model, state, self._spec.model_path, folder)

    def save(self, folder: str) -> list[str]:
        """Weights, optimizer state and random state of every rank; what could not be written, and why.

        The rank can go on either way. Collective.
        """
        from hpt_ray.learner import random_state

        with self._span("save"):
            unwritten = self._engine.save(Path(folder))
            return unwritten + failures_of(lambda: random_state.write(Path(folder), self._rank))

    def load(self, folder: str) -> None:
        """What `save` wrote, with as many ranks or with others. Collective.

        Raises `UserError` where it was written with a ZeRO stage that this one cannot continue.
        """
        from hpt_ray.learner import random_state

        with self._span("load"):
            self._engine.load(Path(folder))
            if not random_state.read(Path(folder), self._rank):  # it was not there when this was saved
                random_state.seed(self._spec.seed + self._rank)

    def node_id(self) -> str:
        """Of the node that this rank is on, as Ray names it."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def copy_to(self, replicas: list[Any], step: int) -> None:
        """All that this rank has after `step` to each of `replicas` (`checkpoint.replicas`), piece by piece.

        What is the same on all ranks is copied by the first. Local.
        """
        import ray

        from hpt_ray.learner import random_state

        limit = self._spec.learner.timeout_s / 2  # sooner than those who wait for this rank give up
        under_way: list[Any] = []
        with self._span("copy"):
            for name, piece in self._named_pieces(self._engine.local_state()):
                shared = ray.put(piece.read().numpy())
                ray.get(under_way, timeout=limit)  # one piece on its way while the next is read
                under_way = [replica.put.remote(step, name, shared) for replica in replicas]
            under_way += [replica.put.remote(step, "random", random_state.current()) for replica in replicas]
            ray.get(under_way, timeout=limit)

    def restore_from(self, replica: Any, step: int) -> None:
        """What `copy_to` copied, into a rank of the same number and layout. Collective."""
        import ray
        import torch

        from hpt_ray.learner import random_state

        limit = self._spec.learner.timeout_s
        with self._span("load"), self._engine.restoring() as state:
            for name, piece in self._named_pieces(state):
                part = ray.get(replica.get.remote(step, name), timeout=limit)
                piece.write(torch.from_numpy(part.copy()))  # torch warns of an array that it may not write
            random_state.set_to(ray.get(replica.get.remote(step, "random"), timeout=limit))

    def _named_pieces(self, state: LocalState) -> Iterator[tuple[str, Any]]:
        pieces = state.pieces(is_first=self._rank == 0)
        return ((f"piece-{i}", piece) for i, piece in enumerate(pieces))


def hf_name(name: str) -> str:
    """The name without the scorer's own prefix."""
    return name.removeprefix("model.")
