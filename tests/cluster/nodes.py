"""A Ray cluster as `ray start` makes it: a head, and nodes that join it and can be lost.

All on loopback, with a token, ports and a folder of its own.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from command import child_environment

from hpt_ray.utils.cache import cache_dir

RAY = str(Path(sys.executable).with_name("ray"))
HOST = "127.0.0.2"  # Ray would replace 127.0.0.1 by the address of a network card
START_LIMIT_S = 240
STARTED = "Ray runtime started"
# Below those that the system gives to whoever asks for any port, above those of Ray's workers.
PORTS = range(20_000, 32_000)


@dataclass
class Nodes:
    """The running cluster: its folder, its address, and what a client has in its environment."""

    folder: Path
    port: int
    dashboard: int
    environment: dict[str, str]
    processes: list[psutil.Popen] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self, cpus: int, *options: str) -> psutil.Popen:
        """One more node with so many logical CPUs, once it is up."""
        log = self.folder / f"start-{len(self.processes)}.log"
        command = [RAY, "start", "--block", f"--num-cpus={cpus}", *options]
        command.append(f"--node-ip-address=127.0.0.{2 + len(self.processes)}")
        with log.open("w") as output:
            process = psutil.Popen(
                command,
                env=child_environment(**self.environment),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        wait_for(lambda: process.poll() is not None or STARTED in log.read_text(), START_LIMIT_S)
        assert process.poll() is None, log.read_text()
        return process

    def join(self, cpus: int) -> psutil.Popen:
        """A node beside the head."""
        return self.start(cpus, f"--address={self.address}")

    def stop(self) -> None:
        for process in reversed(self.processes):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)  # it ends its children first
            process.wait(timeout=60)


@contextmanager
def cluster(cpus: int, *options: str, **more: str) -> Iterator[Nodes]:
    """A head with so many logical CPUs and these options of `ray start`, and more in everybody's environment."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: names of sockets are limited
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    home = folder / "home"
    home.mkdir()
    environment = {
        "GLOO_SOCKET_IFNAME": "lo",
        "HOME": str(home),
        "HPT_RAY_CACHE": str(cache_dir()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        **more,
    }
    port, dashboard, agent, client = free_ports(4)
    nodes = Nodes(folder, port, dashboard, environment)
    try:
        nodes.start(
            cpus,
            "--head",
            f"--port={port}",
            f"--dashboard-host={HOST}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            *options,
        )
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)  # a child may still be writing its last line


def free_ports(count: int) -> list[int]:
    """So many different ports of `HOST` that nobody listens on."""
    free = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            free.append(port)
        if len(free) == count:
            break
    return free


def silence(node: psutil.Popen) -> list[psutil.Process]:
    """What a cut cable does to a node: nothing answers there any more, and no connection is closed."""
    processes = [node, *node.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    return processes


def lose(node: psutil.Popen) -> None:
    """Its raylet and everything it runs are gone at once, and none of them sees another one go."""
    for process in silence(node):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait()


def wait_for(condition: Callable[[], object], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)
