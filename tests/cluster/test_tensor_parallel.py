"""One engine over two processes: each gets its slices of every weight, and both end with their worker."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from probe import LIMIT_S, call
from wired import Wired, start_wired

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

ENDED_WITHIN_S = 30.0


@pytest.fixture(params=[("gloo", 1), ("ipc", 2)], ids=["gloo", "ipc-from-two-ranks"])
def wired(request, ray_cluster, tiny_model) -> Iterator[Wired]:
    # Untied: the head is sliced along the vocabulary, which has an odd half. One key head: both get it.
    backend, num_ranks = request.param
    yield from start_wired(
        tiny_model("llama", False),
        num_ranks=num_ranks,
        stage=1,
        num_workers=1,
        bucket_mb=0.02,
        tensor_parallel=2,
        backend=backend,
    )


def test_sampler_and_learner_agree_and_no_process_stays_behind(wired, capsys):
    sync = wired.sync()
    worker = wired.workers.actors[0]
    processes = psutil.Process(ray.get(worker.pid.remote(), timeout=LIMIT_S)).children(recursive=True)
    assert len(processes) >= 2
    for process in processes:  # where they meet, no other user looks
        folder = Path(process.environ()["TMPDIR"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.glob("vllm_dist_*"))
    for version in (1, 2):
        if version == 2:
            wired.train()
            call(wired.workers, "sleep")
            call(wired.workers, "wake", "weights")
        report = asyncio.run(sync.push(version, wired.workers))
        assert (report.attempts, report.failed) == (1, {})
        if version == 2:
            call(wired.workers, "wake", "kv_cache")
        gap = wired.gap(version, 1.0)
        with capsys.disabled():
            print(f"\nversion {version}: largest gap {gap:.1e}")
        assert gap < 1e-5

    ray.kill(worker)
    deadline = time.monotonic() + ENDED_WITHIN_S
    while alive := [
        process for process in processes if process.is_running() and process.status() != "zombie"
    ]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)
