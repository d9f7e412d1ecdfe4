"""The sizes and architectures of the small task's models. Plain numbers: nothing here is slow to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Architecture = Literal["qwen2", "llama"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Width and depth of one size; `num_heads` × 32 = `hidden`."""

    hidden: int
    mlp: int
    num_layers: int
    num_heads: int
    num_kv_heads: int


SIZES = {
    "t": ModelSize(64, 176, 2, 2, 1),
    "xs": ModelSize(64, 176, 4, 2, 1),
    "w": ModelSize(128, 352, 2, 4, 2),
    "s": ModelSize(128, 352, 4, 4, 2),
    "m": ModelSize(256, 704, 4, 8, 4),
}
