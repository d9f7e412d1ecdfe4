"""How much host memory the pods of a run ask for.

In: the pods and their run. Out: GiB of one pod, group by group. What is known is taken from the run's plan
(`hpt_ray.tools.plan`): what an actor without a GPU needs, and the training state that a rank with one keeps in host
memory. A rank or engine with GPUs also passes the weights through host memory when it loads and saves. Where
nothing says how large the model is, `UNKNOWN_GIB` stands for it; a pod over its limit is killed, so that is much.
"""

from __future__ import annotations

import math

from hpt_ray.config.schema import Config
from hpt_ray.tools.deploy.pods import HEAD, PodGroup, Pods
from hpt_ray.tools.plan import Group, ModelShape, check_plan, find_shape, make_plan
from hpt_ray.tools.plan.memory import GIB, width_of

RAY_GIB = 1.0  # raylet and agents; the object store is in shared memory
DRIVER_GIB = 4.0  # the prompts, the driver, the job server
LIBRARIES_GIB = 8.0  # for each GPU: CUDA, NCCL, pinned buffers
UNKNOWN_GIB = {True: 24.0, False: 4.0}  # for an actor with GPUs (each), and without
SPARE = 1.25  # an estimate is not a limit


def pod_memory_gib(pods: Pods) -> dict[str, int]:
    """GiB of one pod by the name of its group, shared memory included.

    Raises `UserError` where the plan does not fit into the GPUs' memory.
    """
    config = pods.config
    shape = find_shape(config.model, config.model.path)
    plan = make_plan(config, shape)
    check_plan(config, plan)
    actors = {group.kind: _actor_gib(group, config, shape) for group in plan.groups}
    return {group.name: _pod_gib(group, actors) for group in pods.groups}


def shared_memory_gib(group: PodGroup) -> int:
    """/dev/shm: Ray's object store, and what NCCL and vLLM pass between processes of one pod."""
    return 2 + group.gpus


def _pod_gib(group: PodGroup, actors: dict[str, float]) -> int:
    ours = RAY_GIB + (DRIVER_GIB if group.name == HEAD else 0.0)
    theirs = sum(count * actors[kind] for kind, count in group.actors.items())
    return math.ceil(ours + theirs) + shared_memory_gib(group)


def _actor_gib(group: Group, config: Config, shape: ModelShape | None) -> float:
    if group.kind == "verifier":
        return config.reward.num_processes * config.reward.memory_mb / 1024  # what they may use at most
    if shape is None or group.memory is None:
        return UNKNOWN_GIB[group.gpus > 0] * max(1.0, group.gpus)
    if not group.gpus:
        return group.memory.gib * SPARE
    weights = shape.num_parameters * width_of(config) / GIB
    return LIBRARIES_GIB * group.gpus + (weights + group.memory.host_gib) * SPARE
