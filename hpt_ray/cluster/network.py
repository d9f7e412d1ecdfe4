"""A rendezvous that listens on one address only.

`torch.distributed.TCPStore` binds every interface even when it is given 127.0.0.1, so the server's
socket is made here and handed over. Used for the learner's process group and for the weight sync.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any


def free_port(host: str) -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def rendezvous_store(host: str, port: int, *, rank: int, world_size: int, timeout_s: float) -> Any:
    """A `TCPStore` whose server (rank 0) listens on `host` alone. Does not wait for the others."""
    import torch.distributed as dist

    server: dict[str, Any] = {}
    if rank == 0:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        server["master_listen_fd"] = listener.detach()
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        **server,
    )
