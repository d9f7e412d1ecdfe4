"""Where the members of a process group meet, and how each proves to the others that it belongs to the run.

torch's TCPStore tells everything to everybody who can connect, and gloo's connections take whoever comes first. So
members on one machine meet in a file that lives in memory, which the kernel opens to the same user alone. Between
machines they meet in a TCPStore, on one address. In both, a member of a gloo group then shows each other member, on the
very connection that data will take, that it knows a secret which came through Ray.

Used for the learner's process group and for the weight sync.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

SIZE = 32  # bytes of a secret, a question and an answer


class NotAMember(RuntimeError):
    """Who is at the other end of a connection does not know the secret."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """`place` is a path, or with a `port` the address of a TCPStore."""

    place: str
    port: int
    secret: bytes = field(repr=False)

    def store(self, *, world_size: int, timeout_s: float, held: int | None = None) -> Any:
        """Its `torch.distributed.Store`; who has opened the meeting says what it holds. Waits for nobody."""
        import torch.distributed as dist

        timeout = timedelta(seconds=timeout_s)
        if not self.port:
            store = dist.FileStore(self.place, world_size)
            store.set_timeout(timeout)
            return store
        server: dict[str, Any] = {} if held is None else {"master_listen_fd": held}
        return dist.TCPStore(
            self.place,
            self.port,
            world_size,
            is_master=held is not None,
            wait_for_workers=False,
            timeout=timeout,
            **server,
        )


def open_meeting(host: str) -> tuple[Meeting, int]:
    """A meeting for members that reach `host`, and the descriptor that holds it open in this process."""
    secret = secrets.token_bytes(SIZE)
    if ip_address(host).is_loopback:
        held = os.memfd_create("rendezvous")
        return Meeting(f"/proc/{os.getpid()}/fd/{held}", 0, secret), held
    # TCPStore would bind every interface. This port nobody else can take before it does.
    listener = socket.create_server((host, 0), backlog=128)
    return Meeting(host, listener.getsockname()[1], secret), listener.detach()


def prove_membership(
    exchange: Callable[[Any, Any], Any], secret: bytes, *, rank: int, world_size: int
) -> None:
    """Each member asks each other a random question, whose answer needs the secret. Collective.

    `exchange(output, input)` sends row i of a tensor to member i. Raises `NotAMember`.
    """
    import torch

    def send(rows: list[bytes]) -> list[bytes]:
        ours = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(world_size, SIZE)
        theirs = torch.empty_like(ours)
        exchange(theirs, ours)
        return [row.numpy().tobytes() for row in theirs]

    def answer(question: bytes, who: int, asked_by: int) -> bytes:
        return hmac.digest(secret, question + f"{who} to {asked_by}".encode(), "sha256")

    questions = [secrets.token_bytes(SIZE) for _ in range(world_size)]
    answers = send([answer(asked, rank, other) for other, asked in enumerate(send(questions))])
    for other, given in enumerate(answers):
        if not hmac.compare_digest(given, answer(questions[other], other, rank)):
            raise NotAMember(f"who came as member {other} of {world_size} does not know the run's secret")
