"""The plan of a run before anything starts: who stands where, with how much memory, and what it will cost.

In: a checked `Config`, a `ModelShape` and what is known of the data. Out: a `Plan`, which
`hpt_ray.tools.plan.show` shows, and a `UserError` for one that cannot fit. Nothing here reads a file or a network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpt_ray.config.schema import Config
from hpt_ray.driver.actors import resource_requests
from hpt_ray.driver.setup import roles_of
from hpt_ray.errors import UserError
from hpt_ray.rollout.engine import HEAD_SIZES_ON_CPU
from hpt_ray.tools.plan.cost import Cost, DataFacts, costs_of
from hpt_ray.tools.plan.memory import GIB, MEMORY, GroupMemory, learner_memory, rollout_memory, width_of
from hpt_ray.tools.plan.shape import ModelShape

SPARE = 0.1  # of a GPU that both sides share all the time, for what the estimates miss


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
    """`costs` are the least, the expected and the most, None without GPUs or without a shape.

    `config` is the run's, with what was left to the plan to decide.
    """

    config: Config
    groups: tuple[Group, ...]
    gpu_gib: float
    num_gpus: float  # of the whole run; groups that share are counted once
    sync_bytes: int | None
    costs: tuple[Cost, Cost, Cost] | None

    @property
    def together_gib(self) -> list[float]:
        """Of learner and engine where both stay on one GPU; empty elsewhere."""
        if not self.config.cluster.colocate or self.config.cluster.in_turns:
            return []
        sides = [group for group in self.groups if group.kind in ("learner", "rollout") and group.gpus]
        return [group.memory.gib for group in sides if group.memory is not None]

    @property
    def memory_mb(self) -> dict[str, float]:
        """By the name of the metric that measures it."""
        return {
            f"memory/{group.kind}_{'gpu_' if group.gpus else ''}mb": round(group.memory.gib * 1024)
            for group in self.groups
            if group.memory is not None
        }


def make_plan(config: Config, shape: ModelShape | None, facts: DataFacts | None = None) -> Plan:
    """The plan of a run, all phases. Without a shape: the placement alone."""
    config = settled(config, shape)
    requests = resource_requests(config, roles_of(config))
    num_gpus = sum(request.count * request.gpus for request in requests)
    groups = []
    for request in requests:
        # With colocation the ranks reserve the engines' GPUs.
        gpus = config.rollout.num_gpus if request.kind == "rollout" else request.gpus
        memory = None
        if shape is not None and request.kind in MEMORY:
            memory = MEMORY[request.kind](config, shape)
        groups.append(Group(request.kind, request.count, request.cpus, gpus, memory))
    sync = costs = None
    if shape is not None and any(group.kind == "rollout" for group in groups):
        sync = shape.num_parameters * width_of(config)
    if shape is not None and num_gpus:
        gpus_of = {group.kind: group.count * group.gpus for group in groups}
        costs = costs_of(config, shape, gpus_of, facts or DataFacts())
    return Plan(config, tuple(groups), config.cluster.gpu_memory_gib, num_gpus, sync, costs)


def settled(config: Config, shape: ModelShape | None) -> Config:
    """With colocation: whether the sides take turns, and the size of the cache of engines that do not.

    An engine that comes up beside a learner cannot measure what is left for its cache: the learner may take or give
    memory meanwhile. So it is told the size that is planned.
    """
    cluster = config.cluster
    if not cluster.colocate or cluster.take_turns or shape is None:
        return config
    stay = replace(config, cluster=replace(cluster, take_turns=False))
    if not config.rollout.num_gpus:  # on CPUs nothing of a sleeping engine is given back
        return stay
    engine = rollout_memory(stay, shape)
    together = engine.gib + learner_memory(stay, shape).gib
    if cluster.take_turns is None and together > (1 - SPARE) * cluster.gpu_memory_gib:
        return replace(config, cluster=replace(cluster, take_turns=True))
    cache = next(term.gib for term in engine.terms if term.name == "KV cache")
    settings = {"kv_cache_memory_bytes": int(cache * GIB), **config.rollout.engine}
    return replace(stay, rollout=replace(config.rollout, engine=settings))


def host_gib_of(plan: Plan) -> float:
    """GiB of host memory that ranks with GPUs keep training state in, all together."""
    return sum(group.count * group.memory.host_gib for group in plan.groups if group.memory is not None)


# -- what cannot fit -----------------------------------------------------------------------------------


def check_context(config: Config, shape: ModelShape | None) -> None:
    """Raise `UserError` where prompt and response are longer together than the model has positions."""
    longest, positions = config.context_tokens, None if shape is None else shape.positions
    if positions is None or longest <= positions:
        return
    prompt, response = config.data.max_prompt_tokens, longest - config.data.max_prompt_tokens
    key = "data" if response == config.data.max_response_tokens else "evaluation"
    left = positions - prompt
    lower = (
        f"{key}.max_response_tokens to {left}" if left > 0 else f"data.max_prompt_tokens below {positions}"
    )
    raise UserError(
        f"prompt and response may have {longest} tokens together (data.max_prompt_tokens {prompt} + "
        f"{key}.max_response_tokens {response}), but {config.model.path} has {positions} positions: lower {lower}, "
        f"or write model.config_overrides.max_position_embeddings={longest} for a model that is to learn longer "
        "ones; RoPE's base is then often raised too, as configs/paper/parts/qwen2.5-math-7b.yaml does."
    )


def check_heads(config: Config, shape: ModelShape | None) -> None:
    """Raise `UserError` where engines on CPUs cannot serve heads of the model's size."""
    if shape is None or config.rollout.num_gpus or not roles_of(config).rollouts:
        return
    if shape.head_size not in HEAD_SIZES_ON_CPU:
        raise UserError(
            f"model.path: a head of {config.model.path} has {shape.head_size} numbers (head_dim, or hidden_size / "
            f"num_attention_heads), but vLLM on CPUs serves heads of {', '.join(map(str, HEAD_SIZES_ON_CPU))}. Use "
            "another model, as a tiny one with hidden_size=64 and num_attention_heads=2, or GPUs (rollout.num_gpus)."
        )


def check_plan(config: Config, plan: Plan, *, host_gib: float | None = None) -> None:
    """Raise `UserError` where a GPU, or with `host_gib` this machine's memory, cannot hold what is planned.

    It names the largest term and the keys that make it smaller.
    """
    limit = f"`cluster.gpu_memory_gib` is {plan.gpu_gib:g}"
    problems = []
    on_host: dict[str, tuple[float, Group, GroupMemory]] = {}
    for group in plan.groups:
        if (memory := group.memory) is None:
            continue
        if not group.gpus:
            on_host[group.kind] = group.count * memory.gib, group, memory
        elif memory.gib > plan.gpu_gib:
            problems.append(_too_much(config, group.kind, memory, f"one GPU of `{group.kind}`", limit))
    if sum(plan.together_gib) > plan.gpu_gib:
        sides = " + ".join(f"{gib:.1f}" for gib in plan.together_gib)
        problems.append(
            f"learner and engine need about {sides} GiB on the same GPU, but {limit}: leave out "
            "`cluster.take_turns`, or lower `rollout.gpu_memory_utilization`."
        )
    total = sum(gib for gib, _, _ in on_host.values())
    if host_gib is not None and total > host_gib:
        _, group, memory = max(on_host.values(), key=lambda entry: entry[0])
        what = f"the run ({total:.1f} GiB on this machine), most of it {group.count} × `{group.kind}`,"
        problems.append(_too_much(config, group.kind, memory, what, f"this machine has {host_gib:g}"))
    if problems:
        raise UserError("\n".join(problems))


def _too_much(config: Config, kind: str, memory: GroupMemory, what: str, limit: str) -> str:
    largest = memory.largest
    parts = ", ".join(f"{term.name} {term.gib:.1f}" for term in memory.terms)
    return (
        f"{what} needs about {memory.gib:.1f} GiB, but {limit}. The largest part is {largest.name} "
        f"({largest.gib:.1f} GiB): {_advice(config, kind, largest.name)}. All parts: {parts}."
    )


def _advice(config: Config, kind: str, term: str) -> str:
    """The keys that make a term smaller."""
    learner, ranks = config.learner, f"raise `{'critic' if kind == 'critic' else 'learner'}.num_ranks`"
    states = f"{ranks}, or train in `model.dtype` bfloat16"
    if not learner.offload_optimizer:
        states = f"{ranks}, or set `learner.offload_optimizer`"
    if learner.zero_stage < 3:
        states = f"set `learner.zero_stage` to 3, {ranks}, or set `learner.offload_optimizer`"
    match term:
        case "weights" if kind == "rollout":
            return (
                "raise `rollout.tensor_parallel` and `rollout.num_gpus`, or `rollout.gpu_memory_utilization`"
            )
        case "weights" if kind == "reference":
            return "name a smaller model in `reference.path`"
        case "weights" | "optimizer" | "step":
            return states
        case "gradients":
            short = "`learner.deepspeed={data_types: {grad_accum_dtype: bf16}}` (less exact)"
            if learner.zero_stage < 2:
                return f"every rank holds them whole, in float32: set `learner.zero_stage` to 2, or {short}"
            return f"{states}; or {short}"
        case "activations" if not learner.gradient_checkpointing and kind != "reference":
            return "set `learner.gradient_checkpointing`, or lower `max_tokens_per_micro_batch`"
        case "activations":
            tokens = config.max_tokens_per_micro_batch
            shared = "" if kind == "reference" else ", or let ranks share it: `learner.sequence_parallel`"
            if kind != "reference" and learner.num_gpus and not learner.offload_activations:
                shared += ", or set `learner.offload_activations`"
            return f"lower `max_tokens_per_micro_batch` ({tokens}), which must hold one sample{shared}"
        case "buckets" | "buffers":
            return "lower `learner.deepspeed.zero_optimization.reduce_bucket_size`"
    return {
        "copies": "set `checkpoint.in_memory_every` to 0",
        "logprobs": "lower `max_tokens_per_micro_batch`, or let ranks share it: `learner.sequence_parallel`",
        "KV cache": "lower `rollout.gpu_memory_utilization`, or, where one sample does not fit, "
        "`data.max_response_tokens`",
        "work space": "lower `rollout.max_num_seqs`",
        "graphs": "lower `rollout.max_num_seqs`, or set `rollout.enforce_eager`",
        "learner's weights": "set `learner.zero_stage` to 3, or raise the number of ranks",
        "process": "this much takes any process of this kind",
    }[term]
