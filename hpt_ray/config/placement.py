"""Rules on who stands where: pools, shared GPUs, engines over several GPUs.

Functions from a `Config` to a sentence that says what to change, or None, as in `checks.py`, which runs them.
"""

from __future__ import annotations

from hpt_ray.config.schema import ACTOR_GROUPS, ClusterConfig, Config

NOT_A_POOL = ("", "CPU", "GPU", "memory", "object_store_memory")

# vLLM's arguments that would spread one engine over nodes or change how many processes it has → the value
# that is left.
ONE_NODE = {
    "tensor_parallel_size": None,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "nnodes": 1,
    "distributed_executor_backend": "mp",
}


def pools_name_groups(config: Config) -> str | None:
    return wrong_pools(config.cluster)


def wrong_pools(cluster: ClusterConfig) -> str | None:
    """What is wrong with `cluster.pools`, in words."""
    unknown = sorted(cluster.pools.keys() - set(ACTOR_GROUPS))
    if unknown:
        return f"`cluster.pools` names {', '.join(unknown)}; actor groups are {', '.join(ACTOR_GROUPS)}."
    for group, resource in cluster.pools.items():
        if resource in NOT_A_POOL:
            return (
                f"`cluster.pools.{group}` is {resource!r}: name a custom resource that nodes are started with, "
                "as in `ray start --resources '{\"" + group + "\": 1}'`."
            )
    return None


def gpus_are_whole(config: Config) -> str | None:
    """Two processes of NCCL cannot share a GPU, and an engine's share of memory is of the whole GPU."""
    numbers = {"rollout.num_gpus": config.rollout.num_gpus, "learner.num_gpus": config.learner.num_gpus}
    wrong = [f"`{name}` ({number:g})" for name, number in numbers.items() if number % 1]
    if not wrong:
        return None
    return (
        f"{' and '.join(wrong)} must be a whole number. For rollout workers and learner ranks on the same "
        "GPUs give both whole GPUs and set `cluster.colocate=true`."
    )


def engine_stands_on_one_node(config: Config) -> str | None:
    """A bundle of the placement group, and with it an engine, is on one node."""
    for name, allowed in ONE_NODE.items():
        value = config.rollout.engine.get(name, allowed)
        if value != allowed:
            return (
                f"`rollout.engine.{name}` is {value!r}, but an engine is one process with "
                "`rollout.tensor_parallel` GPUs of one node: remove it, and set `rollout.tensor_parallel` and "
                "`rollout.num_workers`."
            )
    return None


def colocated_groups_match(config: Config) -> str | None:
    """Engine i stands on the GPUs of the ranks from i · tensor_parallel on."""
    if not config.cluster.colocate:
        return None
    rollout, learner, pools = config.rollout, config.learner, config.cluster.pools
    ranks, gpus = rollout.num_workers * rollout.tensor_parallel, rollout.tensor_parallel * learner.num_gpus
    wishes = [
        (
            learner.num_ranks == ranks,
            f"`learner.num_ranks` ({learner.num_ranks}) to be {ranks}, `rollout.num_workers` times "
            "`rollout.tensor_parallel`",
        ),
        (
            rollout.num_gpus == gpus,
            f"`rollout.num_gpus` ({rollout.num_gpus:g}) to be {gpus:g}, the GPUs of "
            f"{rollout.tensor_parallel} ranks",
        ),
        (learner.zero_stage >= 1, "`learner.zero_stage` to be 1, 2 or 3, whose optimizer state can be moved"),
        (
            rollout.max_off_policy_steps == 0,
            "`rollout.max_off_policy_steps` to be 0: nothing is generated while the learner has the GPUs",
        ),
        (
            config.weight_sync.backend != "nccl",
            "`weight_sync.backend` to be `auto`: NCCL cannot send from a GPU to itself",
        ),
        (
            pools.get("rollout") == pools.get("learner"),
            "`cluster.pools` to name the same resource for `rollout` and `learner`",
        ),
    ]
    missing = [wish for holds, wish in wishes if not holds]
    return f"`cluster.colocate` needs {'; '.join(missing)}." if missing else None


PLACEMENT_RULES = [pools_name_groups, gpus_are_whole, engine_stands_on_one_node, colocated_groups_match]
