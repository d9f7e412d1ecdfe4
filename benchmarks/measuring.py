"""Time, device memory and error of one operation, for the benchmarks of operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Skipped(Exception):
    """Why a part of a benchmark cannot run here."""


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """The median of so many calls after a first; with a GPU each ends when the device has ended."""
    times = []
    for _ in range(repeats + 1):
        _synchronize()
        begin = time.perf_counter()
        function()
        _synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def peak_bytes(function: Callable[[], Any]) -> int | None:
    """Device memory at its highest during a call, beyond what is held before; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def cost(function: Callable[[], Any], repeats: int) -> dict[str, Any]:
    return {"seconds": seconds(function, repeats), "peak_bytes": peak_bytes(function)}


def errors(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> dict[str, list[float]]:
    """‖mine − theirs‖ / ‖theirs‖ and the largest difference, tensor by tensor."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(mine, theirs, strict=True)]
    return {
        "relative": [float((a - b).norm() / b.norm()) for a, b in pairs],
        "largest": [float((a - b).abs().max()) for a, b in pairs],
    }


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
