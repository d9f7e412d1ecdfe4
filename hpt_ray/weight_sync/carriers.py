"""The carriers by name: a sender's class for each, and what both halves must know to meet."""

from __future__ import annotations

from typing import Any, Protocol

from hpt_ray.weight_sync.buckets import TensorMeta


class Sender(Protocol):
    """The learner's half of a carrier."""

    def send(self, metas: list[TensorMeta], tensors: Any) -> None:
        """Send `tensors` in the order of `metas`, in buckets; returns when all are on their way."""


def make_sender(carrier: str, init_info: dict[str, Any]) -> Sender:
    """Open the sending end; returns when every receiver has joined."""
    if carrier == "gloo":
        from hpt_ray.weight_sync.gloo import GlooSender

        return GlooSender(init_info)
    if carrier == "nccl":
        from hpt_ray.weight_sync.nccl import NcclSender

        return NcclSender(init_info)
    raise ValueError(f"no carrier {carrier!r}; there are gloo and nccl")
