"""Transfers through real groups, over gloo and over ipc, whose members are threads of this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hpt_ray.weight_sync.backends import BACKENDS, Backend
from hpt_ray.weight_sync.buckets import TensorMeta, cut, size_of, unpack
from hpt_ray.weight_sync.group import (
    Rendezvous,
    RendezvousPoint,
    TransferBroken,
    TransferGroup,
    WeightSender,
    receive,
    send,
)

CPU = torch.device("cpu")
METAS = [
    TensorMeta(f"w{i}", dtype, (samples, 8))
    for i, (dtype, samples) in enumerate(
        [("float32", 64), ("bfloat16", 3), ("float32", 5), ("float32", 40), ("int8", 9), ("float32", 16)]
    )
]
BUCKETS = list(cut(METAS, 1000))


def tensors(seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [(100 * torch.randn(meta.shape)).to(getattr(torch, meta.dtype)) for meta in METAS]


@pytest.fixture(params=["gloo", "ipc"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def point(monkeypatch) -> RendezvousPoint:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return RendezvousPoint("127.0.0.1", timeout_s=30.0)


def received(group: TransferGroup) -> list[torch.Tensor]:
    got: list[torch.Tensor] = []
    receive(group, BUCKETS, lambda buffer, bucket: got.extend(t.clone() for _, t in unpack(buffer, bucket)))
    return got


def member(rendezvous: Rendezvous, rank: int) -> TransferGroup:
    return TransferGroup(rendezvous, rank, device=CPU)


@pytest.mark.parametrize("num_buffers", [1, 2])
def test_every_receiver_gets_every_tensor(point, backend: str, num_buffers: int) -> None:
    rendezvous = point.open(3, backend)
    with ThreadPoolExecutor(2) as threads:
        receivers = [threads.submit(lambda r=rank: received(member(rendezvous, r))) for rank in (1, 2)]
        send(member(rendezvous, 0), BUCKETS, iter(tensors(1)), num_buffers=num_buffers)
        for receiver in receivers:
            assert all(map(torch.equal, receiver.result(10), tensors(1)))


def test_a_backend_of_the_users_carries_a_transfer(point, monkeypatch) -> None:
    made = []

    def make(store: Any, rank: int, world_size: int, timeout_s: float) -> Any:
        made.append((rank, world_size, timeout_s))
        return BACKENDS["gloo"].make(store, rank, world_size, timeout_s)

    monkeypatch.setitem(BACKENDS, "mine", Backend(make, lambda config: None, "gloo under another name"))
    rendezvous = point.open(2, "mine")
    with ThreadPoolExecutor(1) as threads:
        receiver = threads.submit(lambda: received(member(rendezvous, 1)))
        send(member(rendezvous, 0), BUCKETS, iter(tensors(1)))
        assert all(map(torch.equal, receiver.result(10), tensors(1)))
    assert sorted(made) == [(0, 2, 30.0), (1, 2, 30.0)]


def test_a_copy_is_sent_as_it_was_to_who_comes_later(point, backend: str) -> None:
    sender = WeightSender(CPU)
    with ThreadPoolExecutor(1) as threads:
        for attempt in range(2):
            rendezvous = point.open(2, backend)
            receiver = threads.submit(lambda rendezvous=rendezvous: received(member(rendezvous, 1)))
            sender.join(rendezvous)
            if attempt == 0:
                sender.send(METAS, tensors(2), bucket_bytes=1000, num_buffers=2, keep=True)
            else:
                sender.send_copy()
            assert all(map(torch.equal, receiver.result(10), tensors(2)))


def test_memory_that_the_loader_keeps_a_view_of_is_left_alone(point, backend: str) -> None:
    kept: dict[str, torch.Tensor] = {}
    rendezvous = point.open(2, backend)
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(
            lambda: receive(
                member(rendezvous, 1), BUCKETS, lambda buffer, bucket: kept.update(unpack(buffer, bucket))
            )
        )
        send(member(rendezvous, 0), BUCKETS, tensors(3))
        load.result(10)
    assert all(map(torch.equal, kept.values(), tensors(3)))


def test_the_sender_reads_no_further_than_one_bucket_ahead(point, backend: str) -> None:
    """What it holds while a receiver is slow: the bucket that is under way, and the next."""
    read: list[int] = []
    loaded: list[int] = []
    ahead: list[int] = []

    def stream() -> Iterator[torch.Tensor]:
        for i, tensor in enumerate(tensors(4)):
            read.append(METAS[i].num_bytes)
            yield tensor

    def load(_: torch.Tensor, bucket: list[TensorMeta]) -> None:
        time.sleep(0.1)
        loaded.append(size_of(bucket))
        ahead.append(sum(read) - sum(loaded))

    rendezvous = point.open(2, backend)
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(lambda: receive(member(rendezvous, 1), BUCKETS, load))
        send(member(rendezvous, 0), BUCKETS, stream())
        loading.result(10)
    largest = max(size_of(bucket) for bucket in BUCKETS)
    assert max(ahead) <= 4 * largest  # two on each side


@pytest.mark.parametrize("silent", ["never_came", "stopped_taking_part"])
def test_called_off_means_everybody_gives_up_within_a_second(point, backend: str, silent: str) -> None:
    rendezvous = point.open(3, backend)

    def sending() -> None:
        send(member(rendezvous, 0), BUCKETS, tensors(5))

    def receiving() -> None:
        received(member(rendezvous, 1))

    with ThreadPoolExecutor(3) as threads:
        third = threads.submit(lambda: member(rendezvous, 2)) if silent == "stopped_taking_part" else None
        waiting = [threads.submit(sending), threads.submit(receiving)]
        time.sleep(0.5)
        assert third is None or third.result(10)
        assert not waiting[0].done()
        begin = time.monotonic()
        point.call_off(rendezvous)
        with pytest.raises(TransferBroken, match="called it off"):
            waiting[0].result(10)
        if waiting[1].exception(10) is not None:  # it may have received everything
            assert isinstance(waiting[1].exception(), TransferBroken)
        assert time.monotonic() - begin < 1.0


def test_a_sender_can_leave_a_group_that_hangs_and_join_the_next(point, backend: str) -> None:
    sender = WeightSender(CPU)
    hanging, next_one = point.open(2, backend), point.open(2, backend)
    with ThreadPoolExecutor(2) as threads:
        silent = threads.submit(lambda: member(hanging, 1))
        sender.join(hanging)
        sending = threads.submit(sender.send, METAS, tensors(6), bucket_bytes=1000, num_buffers=2, keep=False)
        time.sleep(0.3)
        point.call_off(hanging)
        assert isinstance(sending.exception(10), TransferBroken)
        receiver = threads.submit(lambda: received(member(next_one, 1)))
        begin = time.monotonic()
        sender.join(next_one)
        assert time.monotonic() - begin < 2.0
        sender.send(METAS, tensors(7), bucket_bytes=1000, num_buffers=2, keep=False)
        assert all(map(torch.equal, receiver.result(10), tensors(7)))
        silent.result(10).close()
