"""How fast a bucket of weights is packed on a GPU and leaves it: to the host, or to another process."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from measuring import Skipped, seconds

from hpt_ray.weight_sync.buckets import pack

BUCKET_BYTES = 64 << 20
WAIT_S = 60.0


def pinned(repeats: int) -> dict[str, Any]:
    """Bytes per second of packing a bucket and of copying it between device and host."""
    if not torch.cuda.is_available():
        raise Skipped("needs CUDA")
    weights = [torch.randn(BUCKET_BYTES // 64, dtype=torch.bfloat16, device="cuda") for _ in range(32)]
    bucket = torch.empty(BUCKET_BYTES, dtype=torch.uint8, device="cuda")
    figures = {"pack": BUCKET_BYTES / seconds(lambda: pack(weights, bucket), repeats)}
    for name, is_pinned in (("pinned", True), ("pageable", False)):
        host = torch.empty(BUCKET_BYTES, dtype=torch.uint8, pin_memory=is_pinned)
        figures[f"{name}_to_host"] = BUCKET_BYTES / seconds(partial(host.copy_, bucket, True), repeats)
        figures[f"{name}_to_device"] = BUCKET_BYTES / seconds(partial(bucket.copy_, host, True), repeats)
    return {"bucket_bytes": BUCKET_BYTES, "bytes_per_s": figures}


def cuda_ipc(repeats: int) -> dict[str, Any]:
    """A bucket that another process opens by its handle and copies: what a co-located receiver does."""
    if not torch.cuda.is_available():
        raise Skipped("needs CUDA")
    context = torch.multiprocessing.get_context("spawn")
    handles, answers = context.Queue(), context.Queue()
    receiver = context.Process(target=_receive, args=(handles, answers), daemon=True)
    receiver.start()
    try:
        bucket = torch.arange(BUCKET_BYTES, device="cuda").to(torch.uint8)
        num_responses = []
        for _ in range(repeats + 1):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            handles.put(bucket)
            copy_s, is_equal = answers.get(timeout=WAIT_S)
            num_responses.append((time.perf_counter() - begin, copy_s, is_equal))
    finally:
        handles.put(None)
        receiver.join(WAIT_S)
        receiver.kill()
    whole_s, copy_s, _ = (statistics.median(column) for column in zip(*num_responses[1:], strict=True))
    return {
        "bucket_bytes": BUCKET_BYTES,
        "bytes_per_s": {"handle_and_copy": BUCKET_BYTES / whole_s, "copy": BUCKET_BYTES / copy_s},
        "equal": all(is_equal for *_, is_equal in num_responses),
    }


def _receive(handles: Any, answers: Any) -> None:
    """The other process: copy each bucket, check it, answer."""
    mine = torch.empty(BUCKET_BYTES, dtype=torch.uint8, device="cuda")
    expected = torch.arange(BUCKET_BYTES, device="cuda").to(torch.uint8)
    while (bucket := handles.get(timeout=WAIT_S)) is not None:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        mine.copy_(bucket)
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - begin
        del bucket
        answers.put((elapsed, bool(mine.equal(expected))))
        mine.zero_()
