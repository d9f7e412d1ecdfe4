"""Who can join a process group: members that know the secret. Groups are real ones of gloo, their members threads."""

from __future__ import annotations

import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from hpt_ray.cluster.meeting import NotAMember, open_meeting, prove_membership
from hpt_ray.weight_sync import group
from hpt_ray.weight_sync.group import Rendezvous, RendezvousPoint, TransferBroken, TransferGroup

ANYWHERE = "0.0.0.0"  # not loopback, so for members on other machines too
NOBODY = 65534


def join(rendezvous: Rendezvous, rank: int) -> TransferGroup:
    return TransferGroup(rendezvous, rank, device=torch.device("cpu"))


@pytest.fixture(params=[("127.0.0.1", "gloo"), (ANYWHERE, "gloo"), (ANYWHERE, "ipc")])
def rendezvous(monkeypatch, request) -> Any:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    host, backend = request.param
    point = RendezvousPoint(host, timeout_s=20.0)
    yield point.open(3, backend)
    del point


def test_members_with_the_secret_are_a_group(rendezvous) -> None:
    def first_byte(rank: int) -> int:
        member, buffer = join(rendezvous, rank), torch.full((4,), 7 if rank == 0 else 0, dtype=torch.uint8)
        member.wait(member.broadcast(buffer))
        return int(buffer[0])

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(first_byte, range(3))) == [7, 7, 7]


@pytest.mark.parametrize("place", [0, 2])
def test_who_knows_the_place_but_not_the_secret_gets_no_group_and_leaves_none_to_others(
    rendezvous, place
) -> None:
    meeting = replace(rendezvous.meeting, secret=secrets.token_bytes(32))
    stranger = replace(rendezvous, meeting=meeting)
    with ThreadPoolExecutor(3) as threads:
        joining = [threads.submit(join, stranger if rank == place else rendezvous, rank) for rank in range(3)]
        errors = [one.exception(30) for one in joining]
    assert all(isinstance(error, TransferBroken) for error in errors)
    assert f"member {place} of 3 does not know the run's secret" in str(errors[1])


def test_a_member_that_answers_nothing_holds_nobody_up_who_is_told_to_give_up(monkeypatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    point = RendezvousPoint("127.0.0.1", timeout_s=20.0)
    rendezvous, silent = point.open(2, "gloo"), threading.Event()
    ours = threading.get_ident()

    def answer(*arguments: Any, **options: Any) -> None:
        if threading.get_ident() != ours:
            silent.wait(20)
        prove_membership(*arguments, **options)

    monkeypatch.setattr(group, "prove_membership", answer)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(join, rendezvous, 1)
        calling = threading.Timer(1.0, point.call_off, [rendezvous])
        calling.start()
        begin = time.monotonic()
        with pytest.raises(TransferBroken, match="called it off"):
            join(rendezvous, 0)
        assert time.monotonic() - begin < 4
        silent.set()


def test_an_echo_is_no_answer() -> None:
    sent: list[bytes] = []

    def echo(output: torch.Tensor, rows: torch.Tensor) -> None:
        sent.append(rows.numpy().tobytes())
        output.copy_(rows)

    with pytest.raises(NotAMember):
        prove_membership(echo, b"secret", rank=0, world_size=2)
    assert len(set(sent)) == 2
    assert not any(b"secret" in one for one in sent)


def test_the_secret_is_in_no_text(rendezvous) -> None:
    assert "secret=" not in repr(rendezvous)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_finds_no_port_and_cannot_open_the_file() -> None:
    meeting, held = open_meeting("127.0.0.1")
    assert meeting.port == 0
    meeting.store(world_size=1, timeout_s=1.0, held=held).set("key", "value")
    assert os.path.getsize(meeting.place) > 0
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            os.open(meeting.place, os.O_RDONLY)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    os.close(held)
