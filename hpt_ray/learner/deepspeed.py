"""The DeepSpeed adapter: accumulate gradients over any number of micro-batches, then one optimizer step.

In: a module, and losses of micro-batches. Out: stepped weights, and the gradient's norm. Only this file and
`deepspeed_state.py` import DeepSpeed. The gradient of a step is the sum over all micro-batches of all ranks: each
loss already carries its share of 1/Z, and DeepSpeed's mean over ranks is undone by `world_size`. With ZeRO 0 and 1
each rank holds a whole gradient and ranks meet once a step; with ZeRO 2 and 3 they meet in every micro-batch, which
leaves each its share of the sum, so they must run equal numbers of them. An update whose loss or gradient is not
finite, or whose gradient is too large, changes nothing, on all ranks.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpt_ray.cluster.meeting import Meeting, prove_membership
from hpt_ray.config.training import LearnerConfig
from hpt_ray.errors import failures_of
from hpt_ray.learner.deepspeed_state import (
    Layout,
    LocalState,
    converted,
    described,
    drop_frozen,
    masters_of,
    offload,
    reload,
    tensors_only,
)
from hpt_ray.learner.optimizer import AdamW
from hpt_ray.weight_sync.buckets import cut

GATHER_BYTES = 64 << 20  # ZeRO 3: parameters gathered at the same time, where the reader does not say


def join_ranks(
    meeting: Meeting, held: int | None, *, rank: int, world_size: int, gpu: bool, timeout_s: float
) -> None:
    """Make the default process group of the learner ranks. Rank 0 holds the meeting open."""
    # DeepSpeed reads its place from here. A rank sees one GPU, so it is always local rank 0.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": meeting.place, "MASTER_PORT": str(meeting.port)}
    import deepspeed
    from deepspeed import ops

    # A shared-memory all-reduce that DeepSpeed would compile for a minute and leave behind on a kill.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    store = meeting.store(world_size=world_size, timeout_s=timeout_s, held=held)
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )
    if backend == "gloo" and world_size > 1:  # NCCL's connections have a secret of their own
        prove_membership(dist.all_to_all_single, meeting.secret, rank=rank, world_size=world_size)
    deepspeed.init_distributed(backend)


def deepspeed_config(config: LearnerConfig, *, dtype: str) -> dict[str, Any]:
    """DeepSpeed's own configuration; `learner.deepspeed` has the last word."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        # Page-locked memory is for copies from a GPU.
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.num_gpus > 0}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        # torch's AdamW also where the state is offloaded: no compiler needed, the same numbers.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if dtype == "bfloat16":
        # Ranks' gradients are summed in float32, or the error would grow with the number of ranks.
        ours["communication_data_type"] = "fp32"
        if config.zero_stage >= 2:  # below, this key would give an optimizer that reduces once a micro-batch
            ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merge(ours, config.deepspeed)


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in extra.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if nested else value
    return merged


class DeepSpeedEngine:
    """One rank's half of the collective optimizer."""

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, *, dtype: str, world_size: int):
        import deepspeed

        self._config = config
        self._world_size = world_size
        frozen = [p for p in module.parameters() if not p.requires_grad]
        self._layout = Layout(world_size, config.zero_stage, adapters=described(config.lora, frozen))
        if frozen:
            module.register_state_dict_post_hook(drop_frozen)
        self._optimizer = AdamW(
            [p for p in module.parameters() if p.requires_grad],
            lr=0.0,  # each step brings its own; DeepSpeed may step once while it starts
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            base_pull=config.base_pull,
            fused=config.num_gpus > 0 or None,  # one kernel, without temporaries
        )
        settings = deepspeed_config(config, dtype=dtype)
        if config.zero_stage == 3:
            _share_out(module, settings)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._optimizer, config=settings)
        sums_short = settings.get("data_types", {}).get("grad_accum_dtype") == "bf16"
        if dtype == "bfloat16" and config.zero_stage < 2 and not sums_short:
            # The micro-batches of a step add up in float32: in bfloat16 the error grows with their number.
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.grad_dtype = torch.float32
        masters = masters_of(self._engine, self._optimizer, zero_stage=config.zero_stage)
        self._optimizer.remember_base(masters, getattr(torch, dtype))
        self._accumulation: contextlib.ExitStack | None = None  # open while micro-batches add up
        self._is_reduced = False
        self._is_offloaded = False
        self.device = self._engine.device
        self._loss = torch.zeros((), device=self.device)
        self._unwritten: list[str] = []  # what the save under way could not write, and why
        # A rank that cannot write says so later: first it meets the others, who would wait for it.
        files = self._engine.checkpoint_engine
        for owner, name in ((files, "makedirs"), (files, "save"), (self._engine, "_copy_recovery_script")):
            setattr(owner, name, partial(self._write, getattr(owner, name)))

    def _write(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._unwritten += failures_of(partial(write, *args, **kwargs))

    @property
    def module(self) -> Any:
        """The wrapped module; call `forward` on the engine, not on this."""
        return self._engine.module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` (this micro-batch's share of the step's sum) to the step's gradient."""
        assert not self._is_reduced, "the reduced gradient waits for its step"
        assert not self._is_offloaded, "the optimizer state is in host memory"
        if self._accumulation is None:
            self._accumulation = self._accumulate()
        self._loss += loss.detach()
        self._engine.backward(loss * self._world_size, scale_wrt_gas=False)

    def _accumulate(self) -> contextlib.ExitStack:
        """Let micro-batches add up until it is closed, which leaves the gradient as the step wants it."""
        stack = contextlib.ExitStack()
        match self._config.zero_stage:
            case 0:
                stack.callback(self._engine.allreduce_gradients)
                stack.enter_context(self._engine.no_sync())
            case 1:
                stack.enter_context(self._engine.coalesce_grad_reduction())
            case _:  # each backward pass adds to the share that DeepSpeed keeps
                self._engine.set_gradient_accumulation_boundary(False)
                stack.callback(self._engine.optimizer.finalize_gradient_accumulation_boundary)
                stack.callback(self._engine.set_gradient_accumulation_boundary, True)
        return stack

    def reduce(self) -> None:
        """The step's gradient, summed over micro-batches and ranks; a second call does nothing. Collective."""
        if self._is_reduced:
            return
        assert self._accumulation is not None, "a step needs at least one (dummy) micro-batch on every rank"
        self._accumulation.close()
        self._accumulation = None
        self._is_reduced = True

    def step(self, learning_rate: float) -> tuple[float, str | None]:
        """Clip, step, clear. The global gradient norm before clipping, and why the update was skipped.

        `not_finite`: the loss of some micro-batch or the gradient is not; `grad_norm`: the norm is above
        `skip_grad_norm`. A skipped update clears the gradient; weights and optimizer state, step counts
        too, stay as they are. Collective.
        """
        norm = self._grad_norm()
        skipped = self._reason_to_skip(norm)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.is_held = skipped is not None
        self._engine.step()
        self._is_reduced = False
        self._loss.zero_()
        return norm, skipped

    def base_distance(self) -> tuple[float, float]:
        """‖θ − θ₀‖² and ‖θ₀‖² of this rank's share; of both the same multiple where every rank has all. Local."""
        return self._optimizer.base_distance()

    def forget_optimizer(self) -> None:
        """Moments and step counts as before the first step. In place: DeepSpeed holds on to the tensors."""
        assert self._accumulation is None, "gradients wait for their step"
        for state in self._optimizer.state.values():
            for name, value in state.items():
                state[name] = value.zero_() if isinstance(value, torch.Tensor) else 0

    def _reason_to_skip(self, norm: float) -> str | None:
        """The same on all ranks, whose losses differ, and whose norms may in the last bit."""
        is_finite = math.isfinite(norm) and bool(self._loss.isfinite())
        worst = torch.tensor(norm if is_finite else math.inf, device=self.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        if not worst.isfinite():
            return "not_finite"
        return "grad_norm" if 0 < self._config.skip_grad_norm < float(worst) else None

    def _grad_norm(self) -> float:
        """Of the reduced gradient; inf where that is not finite. Collective."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        optimizer = self._engine.optimizer
        match self._config.zero_stage:
            case 0:
                grads = [p.grad for p in self.module.parameters() if p.grad is not None]
                norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
                return float(torch.linalg.vector_norm(torch.stack(norms)))
            case 3:
                return float(combine_grad_norm_groups(optimizer._get_norm_groups()))
            case _:
                return float(optimizer.scaled_global_norm())

    def full_parameters(self, gather_bytes: int = GATHER_BYTES) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter, whole, in the order of `named_parameters`. Collective: all ranks iterate.

        Under ZeRO 3 at most `gather_bytes` (or one larger parameter) are gathered at a time, as many as
        `weight_sync.buckets.cut` puts into a bucket; a tensor is valid until those after them are asked for.
        """
        from deepspeed.runtime.zero import GatheredParameters

        for batch in cut(self.module.named_parameters(), gather_bytes, num_bytes=_full_bytes):
            whole: Any = contextlib.nullcontext()
            if self._config.zero_stage == 3:
                whole = GatheredParameters([p for _, p in batch], modifier_rank=None)
            with whole:
                yield from ((n, p.detach()) for n, p in batch)

    def parameter_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and full shape of every parameter, in order. Local."""
        return [
            (n, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for n, p in self.module.named_parameters()
        ]

    def offload(self) -> None:
        """All but the parameters to host memory, between two steps; a second call does nothing. ZeRO 1 to 3."""
        if not self._is_offloaded:
            assert self._accumulation is None, "gradients wait for their step"
            offload(self._engine)
            self._optimizer.follow_masters()
            self._is_offloaded = True

    def reload(self) -> None:
        """Be ready to train again."""
        if self._is_offloaded:
            reload(self._engine)
            self._optimizer.follow_masters()
            self._is_offloaded = False

    def save(self, folder: Path) -> list[str]:
        """Optimizer and partitioned weights, one file a rank; what could not be written, and why. Collective."""
        self._unwritten = []
        self._engine.save_checkpoint(
            str(folder),
            tag="state",
            save_latest=False,
            exclude_frozen_parameters=bool(self._layout.adapters),
        )
        if dist.get_rank() == 0:
            self._write(self._layout.write, folder)
        return self._unwritten

    def load(self, folder: Path) -> None:
        """What `save` wrote, also with another number of ranks. Collective.

        Raises `UserError` where the ZeRO stages do not go together, or a file holds more than a state is made of.
        """
        assert not self._is_offloaded, "what is loaded belongs on the device"
        saved = Layout.read(folder)
        with tensors_only(folder):
            if not self._layout.needs_conversion(saved, folder):
                return self._load(folder)
            with converted(folder) as universal:
                self._engine._config.load_universal_checkpoint = True
                try:
                    self._load(universal)
                finally:
                    self._engine._config.load_universal_checkpoint = False

    def local_state(self) -> LocalState:
        """What this rank's training state is made of, between two steps. Local."""
        assert self._accumulation is None, "gradients wait for their step"
        return LocalState.of(self._engine, self._optimizer, zero_stage=self._config.zero_stage)

    @contextlib.contextmanager
    def restoring(self) -> Iterator[LocalState]:
        """The state to be written into; afterwards what all ranks have is the first one's. Collective."""
        assert not self._is_offloaded, "what is restored belongs on the device"
        is_cut = self._config.zero_stage == 3
        if is_cut:  # parameters that are whole here would be what they were
            self._engine.optimizer.checkpoint_event_prologue()
        state = self.local_state()
        yield state
        state.spread(self.device)
        if is_cut:
            self._engine.optimizer.checkpoint_event_epilogue()

    def _load(self, folder: Path) -> None:
        is_whole = not self._layout.adapters  # frozen weights are not in a checkpoint
        path, _ = self._engine.load_checkpoint(str(folder), tag="state", load_module_strict=is_whole)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no state in {folder}")


def _share_out(module: torch.nn.Module, settings: dict[str, Any]) -> None:
    """ZeRO 3, a parameter at a time: `initialize` would take the whole model to each device first. Collective."""
    from deepspeed import zero
    from deepspeed.accelerator import get_accelerator

    zero.Init(module=module, config_dict_or_path=settings)
    device = get_accelerator().current_device_name()
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)


def _full_bytes(named: tuple[str, torch.nn.Parameter]) -> int:
    """Of a parameter when it is whole."""
    return getattr(named[1], "ds_numel", named[1].numel()) * named[1].element_size()
