"""What weights travel over: one record of `BACKENDS` a kind of process group. A user's is added by assignment.

    BACKENDS["mine"] = Backend(make_group, fits=lambda config: None, doc="…")

In: the configuration. Out: the record that both ends of a transfer make their group with.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError
from hpt_ray.utils.names import check_name
from hpt_ray.weight_sync.ipc import IpcGroup

CONNECT_LIMIT_S = 10.0  # for members that are all there


@dataclass(frozen=True, slots=True)
class Backend:
    """`make(store, rank, world_size, timeout_s)` is one member of a new group, once all members are there.

    The group needs `broadcast([buffer], options)` as torch's process groups have it. `fits` says why a
    configuration cannot use this backend; None: it can. `abort` gives up what is under way in a group; None:
    that is left to a thread.
    """

    make: Callable[[dist.Store, int, int, float], Any]
    fits: Callable[[Config], str | None]
    doc: str
    on_gpu: bool = False  # buffers are on the member's GPU, not in host memory
    paired: bool = False  # every rank sends, to the engine processes on its device alone; else rank 0 to all
    abort: Callable[[Any], None] | None = None


def _gloo(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> Any:
    return dist.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=CONNECT_LIMIT_S))


def _ipc(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> Any:
    return IpcGroup(store, rank, world_size, timedelta(seconds=CONNECT_LIMIT_S))


def _nccl(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)
    # NCCL's watchdog would end the whole process when another member dies.
    before = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    try:
        return dist.ProcessGroupNCCL(store, rank, world_size, options)
    finally:
        del os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]
        if before is not None:
            os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = before


def _nccl_fits(config: Config) -> str | None:
    if config.cluster.colocate:
        return (
            "`cluster.colocate` needs `weight_sync.backend` to be `auto` or `ipc`: NCCL cannot send from a GPU "
            "to itself."
        )
    if config.rollout.num_gpus > 0 and config.learner.num_gpus > 0:
        return None
    return (
        "`weight_sync.backend` is `nccl`, which sends between GPUs: give GPUs to both sides "
        "(`rollout.num_gpus`, `learner.num_gpus`), or set the backend to `auto`."
    )


def _ipc_fits(config: Config) -> str | None:
    if config.cluster.colocate:
        return None
    return (
        "`weight_sync.backend` is `ipc`, which hands weights over in memory that a rank and an engine share: put "
        "them on the same GPUs and nodes (`cluster.colocate=true`), or set the backend to `auto`."
    )


BACKENDS: dict[str, Backend] = {
    "gloo": Backend(_gloo, lambda config: None, "between any two ends, through host memory"),
    "nccl": Backend(
        _nccl,
        _nccl_fits,
        "between GPUs that engines and ranks do not share",
        on_gpu=True,
        abort=lambda group: group.abort(),
    ),
    "ipc": Backend(
        _ipc, _ipc_fits, "from each rank to the engine on its GPU, in its memory", on_gpu=True, paired=True
    ),
}


def backend_of(config: Config) -> str:
    """The name in `BACKENDS` that the configuration means; `auto` is NCCL where that fits, else gloo.

    Raises `UserError` for a name that is not there, and for a backend that does not fit.
    """
    name = config.weight_sync.backend
    if name == "auto":
        return "gloo" if BACKENDS["nccl"].fits(config) else "nccl"
    check_name("weight_sync.backend", name, ["auto", *BACKENDS])
    if problem := BACKENDS[name].fits(config):
        raise UserError(problem)
    return name
