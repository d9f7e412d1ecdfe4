"""What every actor process does first: environment, threads, log file, the user's plugins.

Called at the top of an actor's `__init__`, before torch, vLLM or DeepSpeed are imported, because
they read these variables at import. Variables that are already set are kept, for the user knows better; only which
GPUs an actor sees is the run's to say.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

from hpt_ray.utils.plugins import load_inherited

# Nothing a run starts reports home.
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def prepare_process(
    *,
    threads: float,
    log_file: str | None = None,
    environment: dict[str, str] | None = None,
    gpus: str | None = None,
) -> None:
    """Set this actor's process up for real work.

    `threads` CPU threads for numeric libraries (at least one); `log_file` takes all output of this
    process where its folder can be reached. It sees `gpus`, else those that it reserved. Collectives bind this
    node's address as Ray knows it.
    """
    see_gpus(reserved_gpus() if gpus is None else gpus)
    # Ray sets OMP_NUM_THREADS from the reserved CPUs, rounding fractions up; the same rule holds here.
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(threads)))
    for name, value in {**QUIET, **(environment or {})}.items():
        os.environ.setdefault(name, value)
    host = ray.util.get_node_ip_address()
    os.environ.setdefault("VLLM_HOST_IP", host)
    interface = interface_of(host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if log_file is not None and Path(log_file).parent.is_dir():
        stream = open(log_file, "ab", buffering=0)  # noqa: SIM115  (lives as long as the process)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    load_inherited()


def reserved_gpus() -> str:
    """Those that Ray reserved for this actor, as CUDA names them; empty for none."""
    return ",".join(sorted(ray.get_runtime_context().get_accelerator_ids().get("GPU", ())))


def see_gpus(gpus: str) -> None:
    """Let this process see these GPUs alone. Before CUDA starts.

    Ray leaves an actor that asks for none with all of them, and every actor where it was told not to care
    (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES).
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries: what they make stays, so no garbage is looked for in it, now or later.

    A tenth of the time that torch, transformers or vLLM take, and most of every full collection after that.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def memory_mb() -> float:
    """Memory of this process, in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def interface_of(host: str) -> str | None:
    """The network interface that carries address `host`, e.g. `lo` for 127.0.0.1."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return name
    return None


def log_file(logs: Path, kind: str, i: int) -> str:
    return str((logs / f"{kind}-{i}.log").resolve())
