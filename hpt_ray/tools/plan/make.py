"""The plan of a run before anything starts: who stands where, with how much memory, and what it will cost.

In: a checked `Config`, the room it asks for, a `ModelShape` and what is known of the data. Out: a `Plan`, which
`hpt_ray.observe.tables` shows, and a `UserError` for one that cannot fit. Nothing here reads a file or a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpt_ray.cluster.runtime import ResourceRequest
from hpt_ray.config.phases import phases_of
from hpt_ray.config.schema import Config
from hpt_ray.driver.actors import needs
from hpt_ray.driver.setup import choose_algorithm, roles_of
from hpt_ray.errors import UserError
from hpt_ray.tools.plan.cost import EXPECTED, LEAST, MOST, Cost, DataFacts, Work, cost_of
from hpt_ray.tools.plan.memory import (
    GroupMemory,
    critic_memory,
    learner_memory,
    reference_memory,
    rollout_memory,
    width_of,
)
from hpt_ray.tools.plan.shape import ModelShape


@dataclass(frozen=True)
class Group:
    """One actor group. `gpus` are those of one actor, also where another group reserves them."""

    kind: str
    count: int
    cpus: float
    gpus: float
    memory: GroupMemory | None  # of one GPU, or of one actor without any; None: not known


@dataclass(frozen=True)
class Plan:
    """`costs` are the least, the expected and the most, None without GPUs or without a shape."""

    groups: tuple[Group, ...]
    gpu_gib: float
    num_gpus: float  # of the whole run; groups that share are counted once
    sync_bytes: int | None
    costs: tuple[Cost, Cost, Cost] | None


def make_plan(config: Config, shape: ModelShape | None, facts: DataFacts | None = None) -> Plan:
    """The plan of a run, all phases. Without a shape: the placement alone."""
    room = needs(config, roles_of(config))
    shared = config.cluster.colocate
    own = {"rollout": config.rollout.num_gpus}  # with colocation the ranks reserve them
    groups = tuple(_group(config, need, own.get(need.kind, need.gpus), shape) for need in room)
    num_gpus = sum(need.count * need.gpus for need in room)
    costs = None
    if shape is not None and num_gpus:
        gpus = {group.kind: group.count * group.gpus for group in groups}
        works = works_of(config)
        known = facts or DataFacts()
        least, expected, most = (
            cost_of(works, shape, gpus, known, assumed, shared=shared) for assumed in (LEAST, EXPECTED, MOST)
        )
        costs = least, expected, most
    has_engines = any(group.kind == "rollout" for group in groups)
    sync = shape.num_parameters * width_of(config) if shape is not None and has_engines else None
    return Plan(groups, config.cluster.gpu_memory_gib, num_gpus, sync, costs)


def _group(config: Config, need: ResourceRequest, gpus: float, shape: ModelShape | None) -> Group:
    memory = None
    if shape is not None and need.kind in MEMORY:
        memory = MEMORY[need.kind](config, shape)
    return Group(need.kind, need.count, need.cpus, gpus, memory)


MEMORY: dict[str, Callable[[Config, ModelShape], GroupMemory]] = {
    "learner": learner_memory,
    "rollout": rollout_memory,
    "reference": reference_memory,
    "critic": critic_memory,
}


def works_of(config: Config) -> list[Work]:
    """The work of every phase."""
    works = []
    for phase in phases_of(config):
        estimator, gate, num_rollouts = choose_algorithm(phase)
        scores = int(estimator.needs_reference) + int(phase.config.learner.recompute_old_logprobs)
        works.append(Work(phase.config, gate, num_rollouts, scores, estimator.needs_values))
    return works


# -- what cannot fit -----------------------------------------------------------------------------------


def check_plan(config: Config, plan: Plan, *, host_gib: float | None = None) -> None:
    """Raise `UserError` where a GPU, or with `host_gib` this machine's memory, cannot hold what is planned.

    It names the largest term and the keys that make it smaller.
    """
    problems = [
        _too_much(config, group.kind, group.memory, f"one GPU of `{group.kind}`", plan.gpu_gib, GPU_KEY)
        for group in plan.groups
        if group.gpus and group.memory is not None and group.memory.gib > plan.gpu_gib
    ]
    on_host = [group for group in plan.groups if not group.gpus and group.memory is not None]
    total = sum(group.count * group.memory.gib for group in on_host if group.memory is not None)
    if host_gib is not None and total > host_gib:
        group = max(on_host, key=lambda g: g.count * g.memory.gib if g.memory else 0.0)
        assert group.memory is not None
        what = f"the run ({total:.1f} GiB on this machine), most of it {group.count} × `{group.kind}`,"
        problems.append(_too_much(config, group.kind, group.memory, what, host_gib, "this machine has"))
    if problems:
        raise UserError("\n".join(problems))


GPU_KEY = "`cluster.gpu_memory_gib` is"


def _too_much(config: Config, kind: str, memory: GroupMemory, what: str, limit: float, where: str) -> str:
    largest = memory.largest
    parts = ", ".join(f"{term.name} {term.gib:.1f}" for term in memory.terms)
    advice = ADVICE[largest.name](config, kind)
    return (
        f"{what} needs about {memory.gib:.1f} GiB, but {where} {limit:g}. The largest part is {largest.name} "
        f"({largest.gib:.1f} GiB): {advice}. All parts: {parts}."
    )


def _less_weights(config: Config, kind: str) -> str:
    if kind == "rollout":
        return "raise `rollout.tensor_parallel` and `rollout.num_gpus`, or `rollout.gpu_memory_utilization`"
    if kind == "reference":
        return "name a smaller model in `reference.path`"
    return _less_states(config, kind)


def _less_states(config: Config, kind: str) -> str:
    ranks = f"{'critic' if kind == 'critic' else 'learner'}.num_ranks"
    if config.learner.zero_stage < 3:
        return f"set `learner.zero_stage` to 3, raise `{ranks}`, or set `learner.offload_optimizer`"
    if not config.learner.offload_optimizer:
        return f"raise `{ranks}`, or set `learner.offload_optimizer`"
    return f"raise `{ranks}`, or train in `model.dtype` bfloat16"


def _less_gradients(config: Config, kind: str) -> str:
    short = "`learner.deepspeed={data_types: {grad_accum_dtype: bf16}}` (less exact)"
    if config.learner.zero_stage < 2:
        return f"every rank holds them whole, in float32: set `learner.zero_stage` to 2, or {short}"
    return f"{_less_states(config, kind)}; or {short}"


def _less_activations(config: Config, kind: str) -> str:
    if config.learner.gradient_checkpointing or kind == "reference":
        return f"lower `max_tokens_per_micro_batch` ({config.max_tokens_per_micro_batch}), which must hold one sample"
    return "set `learner.gradient_checkpointing`, or lower `max_tokens_per_micro_batch`"


ADVICE: dict[str, Callable[[Config, str], str]] = {
    "weights": _less_weights,
    "optimizer": _less_states,
    "step": _less_states,
    "copies": lambda config, kind: "set `checkpoint.in_memory_every` to 0",
    "gradients": _less_gradients,
    "activations": _less_activations,
    "log-probs": lambda config, kind: "lower `max_tokens_per_micro_batch`",
    "buckets": lambda config, kind: "lower `learner.deepspeed.zero_optimization.reduce_bucket_size`",
    "buffers": lambda config, kind: "lower `learner.deepspeed.zero_optimization.reduce_bucket_size`",
    "KV cache": lambda config, kind: (
        "lower `rollout.gpu_memory_utilization`, or, where one sample does not fit, `data.max_response_tokens`"
    ),
    "work space": lambda config, kind: "lower `rollout.max_num_seqs`",
    "learner's weights": lambda config, kind: "set `learner.zero_stage` to 3, or raise the number of ranks",
    "process": lambda config, kind: "this much takes any process of this kind",
}


def host_gib_of(plan: Plan) -> float:
    """GiB of host memory that ranks with GPUs keep training state in, all together."""
    return sum(group.count * group.memory.host_gib for group in plan.groups if group.memory is not None)
