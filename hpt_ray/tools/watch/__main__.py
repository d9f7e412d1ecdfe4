"""`hpt_ray watch [RUN|FOLDER…] [--port N]`: serve the page on this machine until Ctrl-C.

Exit code 0: ended. 2: the user must change something.
"""

from __future__ import annotations

import secrets
import socket
import sys

import uvicorn

from hpt_ray.errors import UserError, exit_code
from hpt_ray.tools.watch.reader import Runs
from hpt_ray.tools.watch.server import application
from hpt_ray.utils import arguments

HOST = "127.0.0.1"


def main(words: list[str] | None = None) -> int:
    options = arguments.watch(words)
    try:
        runs = Runs(options.folders)
        found = len(runs.all())
        listening = listen(options.port)
    except Exception as error:
        return exit_code(error)
    token, port = secrets.token_urlsafe(16), listening.getsockname()[1]
    print(
        f"{found} run{'s' * (found != 1)}; new ones appear by themselves. Ctrl-C ends the page, not the runs."
    )
    print(f"http://{HOST}:{port}/{token}/", flush=True)
    print(
        f"From another machine: ssh -N -L {port}:{HOST}:{port} THIS_MACHINE, then the same address.",
        flush=True,
    )
    config = uvicorn.Config(application(runs, token), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def listen(port: int) -> socket.socket:
    """A socket on this machine only; port 0 is a free one. Raises `UserError` where the port is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({error.strerror}). Name another: --port {port + 1}."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
