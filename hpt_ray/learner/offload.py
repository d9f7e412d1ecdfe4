"""Optimizer state to host memory and back, for ranks that share their GPU with an engine.

In: a DeepSpeed engine (ZeRO 1 to 3) between two steps. Out: the same engine with moments, float32 master weights
and gradient buffers in host memory, or on its device again; every number stays as it is. Parameters stay on the
device: weight sync, export and scoring go on while the rest is away. State that ZeRO-Offload keeps in host
memory all the time is left alone.

DeepSpeed moves everything in ZeRO 1 and 2. In ZeRO 3 it moves moments and master weights of its own FusedAdam
only, so those of any other optimizer are moved here.
"""

from __future__ import annotations

from typing import Any

GRADIENTS = ("lp_grads", "contiguous_grad_buffer")
OPTIMIZER = ("optim_states", "hp_params")


def offload(engine: Any) -> None:
    """Give up the device memory of everything but the parameters."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
    from deepspeed.runtime.zero.offload_states import offload_optimizer_states

    on_gpu = engine.device.type != "cpu"  # page-locked memory is for copies from a GPU
    ours = _moves_here(engine)
    names = GRADIENTS if ours else GRADIENTS + OPTIMIZER
    engine.offload_states(include=[OffloadStateTypeEnum[name] for name in names], pin_memory=on_gpu)
    if ours:
        offload_optimizer_states(engine.optimizer.optimizer, "cpu", pin_memory=on_gpu)
        _move_masters(engine, "cpu")


def reload(engine: Any) -> None:
    """What `offload` moved is on the device again."""
    from deepspeed.runtime.zero.offload_states import reload_optimizer_states

    engine.reload_states()
    if _moves_here(engine):
        reload_optimizer_states(engine.optimizer.optimizer, engine.device)
        _move_masters(engine, engine.device)


def _moves_here(engine: Any) -> bool:
    return engine.zero_optimization_stage() == 3 and not engine.zero_use_cpu_optimizer()


def _move_masters(engine: Any, device: Any) -> None:
    from deepspeed.accelerator import get_accelerator

    for master in engine.optimizer.fp32_partitioned_groups_flat:
        master.data = master.data.to(device)
    get_accelerator().empty_cache()
