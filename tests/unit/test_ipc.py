"""Transfers over ipc between two processes, also where one is killed. The other cases are in test_transfer.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hpt_ray.config.load import load_config
from hpt_ray.errors import UserError
from hpt_ray.weight_sync.backends import backend_of
from hpt_ray.weight_sync.buckets import TensorMeta, cut, unpack
from hpt_ray.weight_sync.group import (
    Rendezvous,
    RendezvousPoint,
    TransferBroken,
    TransferGroup,
    WeightSender,
    receive,
    send,
)
from hpt_ray.weight_sync.ipc import _export, _opened
from hpt_ray.weight_sync.transaction import seats_of

CPU = torch.device("cpu")
METAS = [TensorMeta(f"w{i}", "float32", (50 + i, 8)) for i in range(8)]
BUCKETS = list(cut(METAS, 4000))
ROUNDS = 3
KILLED_AT = 3  # of 8 tensors
AT_ONCE_S = 10.0  # on a busy machine; the time limit is 60
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request) -> torch.device:
    return torch.device(request.param, 0) if request.param == "cuda" else CPU


@pytest.fixture
def rendezvous(monkeypatch) -> Iterator[Rendezvous]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    point = RendezvousPoint("127.0.0.1", timeout_s=60.0)
    yield point.open(2, "ipc")
    del point


def tensors(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(meta.shape, generator=generator) for meta in METAS]


def in_shared_memory(pid: int) -> list[str]:
    return [file.name for file in Path("/dev/shm").glob(f"torch_{pid}_*")]


def sender(rendezvous: Rendezvous, device: torch.device, *, dies: bool) -> None:
    group = TransferGroup(rendezvous, 0, device=device)

    def stream(seed: int) -> Iterator[torch.Tensor]:
        for i, tensor in enumerate(tensors(seed)):
            if dies and i == KILLED_AT:
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            yield tensor.to(device)

    for seed in range(ROUNDS):
        send(group, BUCKETS, stream(seed))


def receiver(rendezvous: Rendezvous, device: torch.device) -> None:
    """It is killed while it loads its second bucket."""
    group = TransferGroup(rendezvous, 1, device=device)
    loaded = []

    def load(_: torch.Tensor, bucket: list[TensorMeta]) -> None:
        loaded.append(bucket)
        if len(loaded) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    receive(group, BUCKETS, load)


def started(target: Any, *arguments: Any, **more: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=target, args=arguments, kwargs=more, daemon=True
    )
    process.start()
    return process


def test_another_process_gets_the_bytes_and_no_file_is_in_shared_memory(rendezvous, device) -> None:
    process = started(sender, rendezvous, device, dies=False)
    group = TransferGroup(rendezvous, 1, device=device)
    for seed in range(ROUNDS):
        got: list[torch.Tensor] = []
        files: list[str] = []

        def load(buffer: torch.Tensor, bucket: list[TensorMeta], got: Any = got, files: Any = files) -> None:
            got.extend(tensor.cpu() for _, tensor in unpack(buffer, bucket))
            files.extend(in_shared_memory(process.pid))

        receive(group, BUCKETS, load)
        assert all(map(torch.equal, got, tensors(seed)))
        assert device.type == "cuda" or files == []
    process.join(30)
    assert process.exitcode == 0


def test_a_receiver_is_told_at_once_that_the_sender_was_killed(rendezvous) -> None:
    process = started(sender, rendezvous, CPU, dies=True)
    group = TransferGroup(rendezvous, 1, device=CPU)
    begin = time.monotonic()
    with pytest.raises(TransferBroken):
        receive(group, BUCKETS, lambda buffer, bucket: None)
    assert time.monotonic() - begin < AT_ONCE_S
    process.join(5)
    assert process.exitcode == -signal.SIGKILL
    assert in_shared_memory(process.pid) == []


def test_a_sender_is_told_at_once_that_a_receiver_was_killed(rendezvous) -> None:
    process = started(receiver, rendezvous, CPU)
    group = TransferGroup(rendezvous, 0, device=CPU)
    begin = time.monotonic()
    with pytest.raises(TransferBroken):
        send(group, BUCKETS, tensors(0))
    assert time.monotonic() - begin < AT_ONCE_S
    process.join(5)
    assert process.exitcode == -signal.SIGKILL
    assert in_shared_memory(os.getpid()) == []


def test_memory_of_another_node_or_of_a_process_that_has_ended_is_refused() -> None:
    buffer = torch.arange(9, dtype=torch.uint8)
    path, name, size = _export(buffer)
    assert torch.equal(_opened((path, name, size), CPU), buffer)
    for handle in ((path, name + "x", size), ("/proc/0/fd/3", name, size)):
        with pytest.raises(RuntimeError, match="not on this node, or the sender has ended"):
            _opened(handle, CPU)


def test_a_sender_whose_receiver_is_lost_keeps_its_copy_for_the_next(rendezvous, monkeypatch) -> None:
    """Rank 1 takes part in a sync without engine 1, which then comes back."""
    point = RendezvousPoint("127.0.0.1", timeout_s=30.0)
    weights, got = WeightSender(CPU), []
    weights.join(point.open(1, "ipc"))
    weights.send(METAS, tensors(4), bucket_bytes=4000, num_buffers=2, keep=True)
    both = point.open(2, "ipc")
    with ThreadPoolExecutor(1) as threads:

        def receiving() -> None:
            group = TransferGroup(both, 1, device=CPU)
            receive(group, BUCKETS, lambda buffer, bucket: got.extend(t for _, t in unpack(buffer, bucket)))

        there = threads.submit(receiving)
        weights.join(both)
        weights.send_copy()
        there.result(10)
    assert all(map(torch.equal, got, tensors(4)))


def test_each_process_of_an_engine_has_the_rank_on_its_device() -> None:
    assert seats_of(["rollout-0", "rollout-1"], 2, 4) == ([2, 2, 2, 2], [[(0, 1), (1, 1)], [(2, 1), (3, 1)]])
    assert seats_of(["rollout-1"], 2, 4) == ([1, 1, 2, 2], [[(2, 1), (3, 1)]])  # the other engine is gone
    assert seats_of(["rollout-0", "rollout-2"], 1, 1) == ([3], [[(0, 1)], [(0, 2)]])  # rank 0 to all


def test_ranks_and_engines_that_share_nothing_are_refused() -> None:
    words = ["model.path=m", "data.train=[a.parquet]", "weight_sync.backend=ipc"]
    with pytest.raises(UserError, match=r"cluster\.colocate=true"):
        backend_of(load_config(None, words))
    assert backend_of(load_config(None, [*words, "cluster.colocate=true"])) == "ipc"
