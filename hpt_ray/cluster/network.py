"""A rendezvous that listens on one address only.

`torch.distributed.TCPStore` binds every interface even when it is given 127.0.0.1, so the server's
socket is made here and handed over. Used for the learner's process group and for the weight sync.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any


def listen(host: str) -> socket.socket:
    """A socket that listens on `host` at a port of its own, which nobody else can take before the store does."""
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(128)
    return listener


def rendezvous_store(
    host: str, port: int, *, world_size: int, timeout_s: float, listener: socket.socket | None = None
) -> Any:
    """A `TCPStore`, whose server is the member with a `listener` at `host` and `port`; it takes that over.

    Does not wait for the others.
    """
    import torch.distributed as dist

    server: dict[str, Any] = {} if listener is None else {"master_listen_fd": listener.detach()}
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=listener is not None,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        **server,
    )
