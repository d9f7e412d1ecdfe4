"""Memory of one actor of each group, term by term: estimates from a model's shape and the run's sizes.

In: the configuration and a `ModelShape`. Out: a `GroupMemory` per group: the terms that stand at the same time
at the fullest moment, and the host memory beside them.

What the terms count was measured on live engines and is checked in tests/unit/test_plan_memory.py; b are the
bytes of a number (`model.dtype`), P parameters, R ranks, T `max_tokens_per_micro_batch` over
`learner.sequence_parallel`:

    weights       b·P; ZeRO 3: b·P/R, and at most 10⁹ gathered numbers
    optimizer     master weights and two moments, 12·P/R (float32 and ZeRO 0: 8·P); ZeRO 3: 16·P/R, its gradient
                  shard included
    base          θ₀ with `learner.base_pull`, b·P/R (ZeRO 0: b·P), in `optimizer`
    gradients     4·P, for the micro-batches of a step add up in float32; ZeRO 2: 4·P/R; ZeRO 3 has them in `optimizer`
    activations   of T tokens as `layer_bytes` counts them, of attention `segments`; with
                  `learner.gradient_checkpointing` of one layer, and b·width a token where each layer starts, which
                  `learner.offload_activations` has in host memory
    logprobs      hidden states and their gradient, the gradient of the output layer, tiles of logits
    buckets       DeepSpeed's `reduce_bucket_size`, as reduced and as sent, once a step; in ZeRO 2 and 3 during
                  every backward pass; ZeRO 3 keeps one as `buffers`
    step          12·P/R, the float32 gradient and two temporaries of AdamW; with GPUs 4·P/R, for it is one kernel
    adapters      with `learner.lora`: the weights are P and those of the adapters; every other P is the adapters'
                  alone, and the output layer has no gradient
    copies        2·2·(12 + b)·P/R with `checkpoint.in_memory_every`: on two nodes, the last step and the one
                  that comes; in host memory
    process       CUDA, NCCL, libraries, and `SLACK` for fragmentation

Other processes on the GPU are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from hpt_ray.config.schema import Config
from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.critic import optimizer_of
from hpt_ray.learner.deepspeed import deepspeed_config
from hpt_ray.rollout.engine import BATCHED_TOKENS, graph_sizes
from hpt_ray.tools.plan.shape import ModelShape

GIB = 2.0**30
SLACK = 0.05  # of what training allocates and frees again: the allocator's fragmentation
ON_GPU = 2.0  # GiB: CUDA, NCCL's buffers
ON_CPU = {"learner": 0.6, "critic": 0.6, "reference": 0.5, "rollout": 1.0}  # GiB: what a process imports
ASLEEP = 1.5  # GiB that a sleeping engine keeps on the GPU it shares
GRAPH = 0.015  # GiB of one CUDA graph of a decoding step; an assumption, vLLM measures it as it starts
BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers
LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
TILE_BYTES = {True: 96 << 20, False: 12 << 20}  # float32 tiles of `learner.logprobs`, on a GPU or not
WIDTH = {"float32": 4, "bfloat16": 2}  # bytes of a number
# A rank is fullest while it goes back through a micro-batch, while it reduces, or while it steps.
MOMENTS = ("backward", "reduce", "step")
# When a term is there that comes and goes; all others stay. With ZeRO 2 and 3 ranks reduce while they go back.
COMING = {
    "gradients": {"backward", "reduce"},
    "activations": {"backward"},
    "logprobs": {"backward"},
    "buckets": {"reduce"},
    "step": {"step"},
}


@dataclass(frozen=True)
class Term:
    """A part of the memory, in GiB."""

    name: str
    gib: float


@dataclass(frozen=True)
class GroupMemory:
    """One actor's (per GPU, where it has GPUs) fullest moment."""

    terms: tuple[Term, ...]
    host_gib: float = 0.0  # in host memory beside the GPU's
    note: str = ""  # what it allows, in words

    @property
    def gib(self) -> float:
        return sum(term.gib for term in self.terms)

    @property
    def largest(self) -> Term:
        return max(self.terms, key=lambda term: term.gib)


def learner_memory(config: Config, shape: ModelShape) -> GroupMemory:
    """One learner rank. Where it takes turns, in its own: beside a sleeping engine."""
    asleep = ASLEEP if config.cluster.in_turns and config.rollout.num_gpus else 0.0
    head = _hidden_bytes(config, shape)
    if not config.learner.lora.rank:
        head += 4 * shape.vocabulary * shape.width
    head += TILE_BYTES[config.learner.num_gpus > 0]
    return _rank_memory(config, config.learner, shape, "learner", shape.num_parameters, head, asleep)


def critic_memory(config: Config, shape: ModelShape) -> GroupMemory:
    """One rank of the value model: no output layer, and one number a token instead."""
    size = shape.num_parameters - (shape.vocabulary * shape.width if shape.num_embedding else 0)
    return _rank_memory(
        config, optimizer_of(config), shape, "critic", size, _hidden_bytes(config, shape), 0.0
    )


def _rank_memory(
    config: Config,
    learner: LearnerConfig,
    shape: ModelShape,
    kind: str,
    size: int,
    head: float,
    asleep: float,
) -> GroupMemory:
    on_gpu = learner.num_gpus > 0
    adapters = shape.adapter_numbers(learner.lora)
    copies = 4 * (12 + width_of(config)) * (adapters or size) / learner.num_ranks
    account = {
        **training_states(learner, config.model.dtype, size, adapters),
        "copies": copies if config.checkpoint.in_memory_every else 0.0,
        "activations": activation_bytes(config, shape),
        "logprobs": head,
    }
    # Of ranks that share their GPU, host memory holds the optimizer state while the engine generates.
    host = account["optimizer"] if asleep else 0.0
    if on_gpu and learner.offload_optimizer:
        host = account.pop("optimizer") + account.pop("step")
        # Masters and gradient are page-locked, which torch does in powers of two.
        share = 4 * (adapters or size) / learner.num_ranks
        host += 2 * (2.0 ** ceil(log2(share)) - share)
    if learner.offload_activations:
        host += border_bytes(config, shape)
    if on_gpu:
        host += account.pop("copies")
    when = COMING | ({"buckets": {"backward"}} if learner.zero_stage >= 2 else {})

    def at(moment: str) -> dict[str, float]:
        return {name: account[name] for name in when if name in account and moment in when[name]}

    fullest = max(map(at, MOMENTS), key=lambda terms: sum(terms.values()))
    staying = {name: account[name] for name in account if name not in when}
    slack = SLACK * sum(fullest.values()) / GIB
    process = (ON_GPU + asleep if on_gpu else ON_CPU[kind]) + slack
    note = f"trains {adapters / 1e6:.3g} of {size / 1e6:,.4g} M parameters" if adapters else ""
    return GroupMemory(_terms(staying | fullest, process), host_gib=host / GIB, note=note)


def training_states(learner: LearnerConfig, dtype: str, size: int, adapters: int = 0) -> dict[str, float]:
    """Bytes of one rank that ZeRO may shard, of a model of `size` parameters, as DeepSpeed keeps it.

    With `adapters`, that many numbers are added and train alone. Weights, optimizer and buffers stay, gradients
    until the step; buckets and step come and go.
    """
    settings = deepspeed_config(learner, dtype=dtype)
    zero: Mapping[str, Any] = settings["zero_optimization"]
    stage, number, whole, trained = int(zero["stage"]), WIDTH[dtype], size + adapters, adapters or size
    share = trained / learner.num_ranks
    sums_short = dtype == "bfloat16" and settings.get("data_types", {}).get("grad_accum_dtype") == "bf16"
    bucket = int(zero.get("reduce_bucket_size", BUCKET))
    filled = min(bucket, trained)
    if not learner.num_gpus:
        bucket = filled  # on a CPU a buffer takes room as far as it is filled
    states = {
        "weights": number * whole,
        "optimizer": 12 * share,
        "buffers": 0,
        "gradients": (2.0 if sums_short else 4.0) * trained,
        "buckets": number * bucket + (4 * filled if dtype == "bfloat16" else 0),
        "step": (4 if learner.num_gpus else 12) * share,
    }
    if stage == 0:
        master = 0.0 if dtype == "float32" else 4.0
        states |= {"optimizer": (8 + master) * trained, "buckets": 4 * filled, "step": 5 * trained}
    elif stage == 2:
        states["gradients"] /= learner.num_ranks
    elif stage == 3:
        live = min(whole, int(zero.get("stage3_max_live_parameters", LIVE))) if learner.num_ranks > 1 else 0
        states |= {
            "weights": number * (whole / learner.num_ranks + live),
            "optimizer": 16 * share,
            "buffers": 4 * bucket,
        }
        states |= {"gradients": 0, "buckets": 4 * filled}
    if learner.base_pull:
        states["optimizer"] += number * (trained if stage == 0 else share)
    return states


def activation_bytes(config: Config, shape: ModelShape) -> float:
    """What the forward pass of a full micro-batch keeps for the backward pass, and its largest gradient."""
    learner, layer = config.learner, layer_bytes(shape, width_of(config))
    kept = _tokens(config) * layer * (1 if learner.gradient_checkpointing else shape.num_layers)
    if learner.gradient_checkpointing and not learner.offload_activations:
        kept += border_bytes(config, shape)
    return kept + _tokens(config) * 3 * width_of(config) * shape.mlp_width


def border_bytes(config: Config, shape: ModelShape) -> float:
    """The hidden states that every layer starts from, of a full micro-batch."""
    return float(_tokens(config) * shape.num_layers * width_of(config) * shape.width)


def layer_bytes(shape: ModelShape, number: int) -> float:
    """Kept of one token by one layer with attention `segments`: norms in float32, attention, MLP."""
    norms = (8 + 4 * number) * shape.width
    return norms + 6 * number * shape.query_width + 4 * number * shape.mlp_width


def _hidden_bytes(config: Config, shape: ModelShape) -> float:
    """The last hidden states of a micro-batch, and their gradient in float32."""
    return _tokens(config) * shape.width * (4 + width_of(config))


def _tokens(config: Config) -> int:
    """Of a full micro-batch, those of one rank."""
    return ceil(config.max_tokens_per_micro_batch / config.learner.sequence_parallel)


def rollout_memory(config: Config, shape: ModelShape) -> GroupMemory:
    """One GPU of an engine, or a CPU engine. What vLLM may take and does not need otherwise is its cache."""
    rollout, number, parts = config.rollout, width_of(config), config.rollout.tensor_parallel
    on_gpu = rollout.num_gpus > 0
    weights = number * shape.num_parameters / parts
    tokens = int(rollout.engine.get("max_num_batched_tokens", BATCHED_TOKENS[on_gpu]))
    logits = 3 * 4 * rollout.max_num_seqs * shape.vocabulary
    work = tokens * number * 4 * (shape.mlp_width + shape.width) / parts + logits
    sample = (
        number * shape.kv_numbers * (config.data.max_prompt_tokens + config.data.max_response_tokens) / parts
    )
    process = (ON_GPU if on_gpu else ON_CPU["rollout"]) + 2 * config.weight_sync.bucket_mb / 1024
    graphs = 0.0
    if on_gpu:
        if not rollout.is_eager:
            graphs = GRAPH * GIB * len(graph_sizes(rollout.max_num_seqs))
        most = rollout.gpu_memory_utilization * config.cluster.gpu_memory_gib
        cache = (most - process) * GIB - weights - work - graphs
    else:  # weights of linear layers lie there a second time, as oneDNN wants them
        weights, cache = 2 * weights, rollout.kv_cache_gib * GIB
    held = {"weights": weights, "KV cache": max(cache, sample), "work space": work, "graphs": graphs}
    if on_gpu and config.cluster.in_turns:  # its own stay on the GPU in both turns
        adapters = shape.adapter_numbers(config.learner.lora)
        states = training_states(config.learner, config.model.dtype, shape.num_parameters, adapters)
        held["learner's weights"] = states["weights"] + ON_GPU * GIB
    samples = max(int(cache / sample), 0)
    note = f"cache for {samples} of {rollout.max_num_seqs} responses at full length"
    if samples >= rollout.max_num_seqs:
        note = f"cache for all {rollout.max_num_seqs} responses at once"
    return GroupMemory(_terms(held, process), note=note)


def reference_memory(config: Config, shape: ModelShape) -> GroupMemory:
    """One scorer: weights, and one layer at a time."""
    number, on_gpu, tokens = (
        width_of(config),
        config.reference.num_gpus > 0,
        config.max_tokens_per_micro_batch,
    )
    held = {
        "weights": float(number * shape.num_parameters),
        "activations": tokens * layer_bytes(shape, number),
        "logprobs": 4.0 * tokens * shape.width + TILE_BYTES[on_gpu],
    }
    return GroupMemory(_terms(held, ON_GPU if on_gpu else ON_CPU["reference"]))


MEMORY: dict[str, Callable[[Config, ModelShape], GroupMemory]] = {
    "learner": learner_memory,
    "rollout": rollout_memory,
    "reference": reference_memory,
    "critic": critic_memory,
}


def width_of(config: Config) -> int:
    """Bytes of a number of the model."""
    return WIDTH[config.model.dtype]


def _terms(held: Mapping[str, float], process_gib: float) -> tuple[Term, ...]:
    terms = [Term(name, size / GIB) for name, size in held.items() if size]
    return (*terms, Term("process", process_gib))
