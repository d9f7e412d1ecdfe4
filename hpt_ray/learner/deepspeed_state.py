"""A rank's training state in DeepSpeed's hands: as files for any number of ranks, as bytes, away from the GPU.

    Layout, converted    a checkpoint on disk, cut anew where the number of ranks has changed
    LocalState           the tensors where they lie in memory, to be copied piece by piece and written into
    offload, reload      optimizer state to host memory and back, for ranks that share their GPU with an engine

All of it acts between two steps and leaves every number as it is. It knows no step; `checkpoint` does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpt_ray.config.training import LoRAConfig
from hpt_ray.errors import UserError
from hpt_ray.learner.unpickling import only

LAYOUT = "layout.json"
UNIVERSAL = "universal"
PIECE_BYTES = 256 << 20
SAMPLES = 1024  # numbers of a weight that tell it from another
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
# What DeepSpeed can move, as it names it.
GRADIENTS = ("lp_grads", "contiguous_grad_buffer")
OPTIMIZER = ("optim_states", "hp_params")


@dataclass(frozen=True)
class Layout:
    """Over how many ranks, and by which ZeRO stage, the state is cut: DeepSpeed writes one file a rank."""

    num_ranks: int
    zero_stage: int
    adapters: dict[str, Any] = field(default_factory=dict)  # where not all weights train: see `described`

    def write(self, folder: Path) -> None:
        (folder / LAYOUT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Layout:
        return cls(**json.loads((folder / LAYOUT).read_text(encoding="utf-8")))

    def needs_conversion(self, saved: Layout, folder: Path) -> bool:
        """Whether ranks of this layout must have the state in `folder` cut anew.

        Raises `UserError` where that cannot be done.
        """
        if self.adapters != saved.adapters:
            raise UserError(
                f"{folder} cannot be continued with the adapters and the base of this run: it was written with "
                f"{saved.adapters or 'no learner.lora'}, and here is {self.adapters or 'no learner.lora'}. Set "
                "learner.lora and model.path as they were, or start a new run from its hf folder (model.path)."
            )
        if self == saved:
            return False
        if _family(self) != _family(saved):
            raise UserError(
                f"{folder} was written with ZeRO {saved.zero_stage} and cannot be continued with "
                f"learner.zero_stage={self.zero_stage}: set learner.zero_stage={saved.zero_stage}. The number "
                "of ranks may change."
            )
        return self.zero_stage > 0  # without ZeRO every rank reads the same file


def described(lora: LoRAConfig, frozen: Sequence[torch.Tensor]) -> dict[str, Any]:
    """What a checkpoint of adapters needs beside itself: their shape, and the base, by a digest of samples of it."""
    if not frozen:
        return {}
    digest = hashlib.blake2b(digest_size=8)
    for weight in frozen:
        flat = weight.detach().view(-1)
        digest.update(flat[:: max(1, flat.numel() // SAMPLES)].float().cpu().numpy().tobytes())
    return {**asdict(lora), "base": digest.hexdigest()}


def drop_frozen(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook of `state_dict`: what does not train is in no checkpoint, under none of its names."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _family(layout: Layout) -> int:
    """Equal for layouts that have a universal form in common: ZeRO 1 and 2 do."""
    return min(layout.zero_stage, 1) if layout.zero_stage < 3 else 3


def tensors_only(folder: Path) -> AbstractContextManager[None]:
    """Nothing but a training state is made from DeepSpeed's files, which are pickles. See `unpickling.only`."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return only([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address], folder)


@contextmanager
def converted(folder: Path) -> Iterator[Path]:
    """The checkpoint in `folder` in DeepSpeed's universal form while the context lasts. Collective.

    That is one folder a parameter with its float32 value and AdamW's two moments, which rank 0 makes inside the
    checkpoint and all ranks read their parts of. It joins ZeRO 1 and 2; between them, 0 and 3 there is no way.
    """
    from deepspeed.checkpoint import ds_to_universal

    universal, is_first = folder / UNIVERSAL, dist.get_rank() == 0
    if is_first:
        shutil.rmtree(universal, ignore_errors=True)  # of an interrupted load
        ds_to_universal.main(
            Namespace(
                input_folder=str(folder / "state"),
                output_folder=str(universal / "state"),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # what only DeepSpeed's own training loops leave in a checkpoint
            )
        )
    dist.barrier()
    yield universal
    dist.barrier()
    if is_first:
        shutil.rmtree(universal)


@dataclass(frozen=True)
class Piece:
    """Views of bytes [n] of some tensors, which may be on different devices."""

    parts: list[torch.Tensor]

    def read(self) -> torch.Tensor:
        """All bytes, in host memory [sum of n]."""
        return torch.cat([part.cpu() for part in self.parts])

    def write(self, content: torch.Tensor) -> None:
        """The inverse of `read`."""
        sizes = [part.numel() for part in self.parts]
        for part, new in zip(self.parts, content.split(sizes), strict=True):
            part.copy_(new)


@dataclass(frozen=True)
class LocalState:
    """Weights, master weights and moments: what is the same on all ranks, and what only this one has.

    Ranks of the same number and ZeRO stage have the same pieces in the same order.
    """

    same: list[torch.Tensor]
    own: list[torch.Tensor]

    @classmethod
    def of(cls, engine: Any, optimizer: torch.optim.AdamW, *, zero_stage: int) -> LocalState:
        """`optimizer` is the one that DeepSpeed's `engine` wraps."""
        weights = [p for p in engine.module.parameters() if p.requires_grad]
        if zero_stage == 3:
            weights = [p.ds_tensor for p in weights]
        masters = masters_of(engine, optimizer, zero_stage=zero_stage)
        moments = [_moments(optimizer, master)[name] for master in masters for name in MOMENTS]
        steps = [tensor.data for tensor in [*masters, *moments]]
        weights = [tensor.data for tensor in weights]
        match zero_stage:
            case 0:
                return cls(weights + steps, [])
            case 3:
                return cls([], weights + steps)
            case _:
                return cls(weights, steps)

    def pieces(self, *, is_first: bool) -> Iterator[Piece]:
        """What all ranks have the same is the first rank's."""
        return _pieces([*self.same, *self.own] if is_first else self.own)

    def spread(self, device: torch.device) -> None:
        """Give all ranks what the first one has of the same. Collective, on `device`."""
        for piece in _pieces(self.same):
            there = piece.read().to(device)
            dist.broadcast(there, 0)
            piece.write(there)


def masters_of(engine: Any, optimizer: torch.optim.AdamW, *, zero_stage: int) -> list[torch.Tensor]:
    """What `optimizer` steps on this rank; ZeRO 3 puts it there for the time of a step only."""
    if zero_stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [p for group in optimizer.param_groups for p in group["params"]]


def _moments(optimizer: torch.optim.AdamW, master: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's state of one tensor; where it has not stepped yet, the one that its first step begins with."""
    state = optimizer.state[master]
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
    return state


def _pieces(tensors: Iterable[torch.Tensor]) -> Iterator[Piece]:
    """Small tensors share a piece, and large ones are cut."""
    parts: list[torch.Tensor] = []
    room = PIECE_BYTES
    for tensor in tensors:
        rest = tensor.view(-1).view(torch.uint8)
        while rest.numel():
            part, rest = rest[:room], rest[room:]
            parts.append(part)
            room -= part.numel()
            if not room:
                yield Piece(parts)
                parts, room = [], PIECE_BYTES
    if parts:
        yield Piece(parts)


def offload(engine: Any) -> None:
    """Moments, float32 master weights and gradient buffers to host memory (ZeRO 1 to 3).

    Parameters stay on the device: weight sync, export and scoring go on. What ZeRO-Offload keeps in host
    memory all the time is left alone. DeepSpeed moves everything in ZeRO 1 and 2; in ZeRO 3 moments and master
    weights of its own FusedAdam only, so those of any other optimizer are moved here.
    """
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
    from deepspeed.runtime.zero.offload_states import offload_optimizer_states

    on_gpu = engine.device.type != "cpu"  # page-locked memory is for copies from a GPU
    ours = _moves_here(engine)
    names = GRADIENTS if ours else GRADIENTS + OPTIMIZER
    engine.offload_states(include=[OffloadStateTypeEnum[name] for name in names], pin_memory=on_gpu)
    if ours:
        offload_optimizer_states(engine.optimizer.optimizer, "cpu", pin_memory=on_gpu)
        _move_masters(engine, "cpu")


def reload(engine: Any) -> None:
    """What `offload` moved is on the device again."""
    from deepspeed.runtime.zero.offload_states import reload_optimizer_states

    engine.reload_states()
    if _moves_here(engine):
        reload_optimizer_states(engine.optimizer.optimizer, engine.device)
        _move_masters(engine, engine.device)


def _moves_here(engine: Any) -> bool:
    return engine.zero_optimization_stage() == 3 and not engine.zero_use_cpu_optimizer()


def _move_masters(engine: Any, device: Any) -> None:
    from deepspeed.accelerator import get_accelerator

    for master in engine.optimizer.fp32_partitioned_groups_flat:
        master.data = master.data.to(device)
    get_accelerator().empty_cache()
