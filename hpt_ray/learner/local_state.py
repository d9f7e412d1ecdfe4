"""The tensors that a rank's training state is made of, where they lie in its memory: to be read and written into.

In: a DeepSpeed engine between two steps. Out: weights, master weights and the optimizer's moments, whole or this
rank's share of them, in pieces of a bounded number of bytes. Ranks of the same number and ZeRO stage have the same
pieces in the same order. It writes no file and knows no step; `checkpoint` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

PIECE_BYTES = 256 << 20
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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
    """What is the same on all ranks, and what only this one has."""

    same: list[torch.Tensor]
    own: list[torch.Tensor]

    @classmethod
    def of(cls, engine: Any, optimizer: torch.optim.AdamW, *, zero_stage: int) -> LocalState:
        """`optimizer` is the one that DeepSpeed's `engine` wraps."""
        weights = list(engine.module.parameters())
        if zero_stage == 3:
            masters = engine.optimizer.fp32_partitioned_groups_flat
            weights = [p.ds_tensor for p in weights]
        else:
            masters = [p for group in optimizer.param_groups for p in group["params"]]
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
