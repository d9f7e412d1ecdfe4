"""Memory of one actor of each group, term by term: estimates from a model's shape and the run's sizes.

In: the configuration and a `ModelShape`. Out: a `GroupMemory` per group: the terms that stand at the same time
at the fullest moment, the host memory beside them, and what a term can be made smaller with.

What the terms count was measured on live engines and is checked in tests/unit/test_plan_memory.py; b are the
bytes of a number (`model.dtype`), P parameters, R ranks, T `max_tokens_per_micro_batch`:

    weights       b·P; ZeRO 3: b·P/R, and at most 10⁹ gathered numbers
    optimizer     master weights and two moments, 12·P/R (float32 and ZeRO 0: 8·P); ZeRO 3: 16·P/R, its gradient
                  shard included
    gradients     4·P, for the micro-batches of a step add up in float32; ZeRO 2: 4·P/R; ZeRO 3 has them in `optimizer`
    activations   T samples of layers as `layer_bytes` counts them, of attention `segments`
    log-probs     hidden states and their gradient, the gradient of the output layer, tiles of logits
    buckets       DeepSpeed's `reduce_bucket_size`, as reduced and as sent, once a step; in ZeRO 2 and 3 during
                  every backward pass; ZeRO 3 keeps one as `buffers`
    step          12·P/R, the float32 gradient and two temporaries of AdamW
    copies        2·2·(12 + b)·P/R with `checkpoint.in_memory_every`: on two nodes, the last step and the one
                  that comes; in host memory
    process       CUDA, NCCL, libraries, and `SLACK` for fragmentation

Other processes on the GPU are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpt_ray.config.schema import Config, LearnerConfig
from hpt_ray.learner.critic import optimizer_of
from hpt_ray.learner.deepspeed import deepspeed_config
from hpt_ray.tools.plan.shape import ModelShape

GIB = 2.0**30
SLACK = 0.05  # of what training allocates and frees again: the allocator's fragmentation
ON_GPU = 2.0  # GiB: CUDA, NCCL's buffers
ON_CPU = {"learner": 0.6, "critic": 0.6, "reference": 0.5, "rollout": 1.0}  # GiB: what a process imports
ASLEEP = 1.5  # GiB that a sleeping engine keeps on the GPU it shares
BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers
LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
TILE_BYTES = {True: 96 << 20, False: 12 << 20}  # float32 tiles of `learner.logprob`, on a GPU or not
ENGINE_TOKENS = 8192  # vLLM's max_num_batched_tokens on a GPU
CPU_ENGINE_TOKENS = 16384


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
    """One learner rank. With colocation, in its own turn: beside a sleeping engine."""
    asleep = ASLEEP if config.cluster.colocate and config.rollout.num_gpus else 0.0
    head = _head_bytes(config, shape, config.learner.num_gpus > 0)
    return _trainer(config, config.learner, shape, "learner", shape.num_parameters, head, asleep)


def critic_memory(config: Config, shape: ModelShape) -> GroupMemory:
    """One rank of the value model: no output layer, and one number a token instead."""
    learner = optimizer_of(config)
    size = shape.num_parameters - (shape.vocabulary * shape.width if shape.num_embedding else 0)
    head = config.max_tokens_per_micro_batch * shape.width * (4 + width_of(config))
    return _trainer(config, learner, shape, "critic", size, head, 0.0)


def _trainer(
    config: Config,
    learner: LearnerConfig,
    shape: ModelShape,
    kind: str,
    size: int,
    head: float,
    asleep: float,
) -> GroupMemory:
    states = training_states(learner, config.model.dtype, size)
    away = learner.offload_optimizer and learner.num_gpus > 0
    copies = (
        4 * (12 + width_of(config)) * size / learner.num_ranks if config.checkpoint.in_memory_every else 0.0
    )
    held = {
        "weights": states.weights,
        "optimizer": 0.0 if away else states.optimizer,
        "buffers": states.buffers,
        "copies": 0.0 if learner.num_gpus else copies,
    }
    # A rank is fullest while it goes back through a micro-batch, while it reduces, or while it steps.
    passing = {"activations": activation_bytes(config, shape), "log-probs": head}
    reducing = {"buckets": states.buckets}
    summing = [passing | reducing] if learner.zero_stage >= 2 else [passing, reducing]
    moments = [{"gradients": states.gradients} | moment for moment in summing]
    moments.append({"step": 0.0 if away else states.step})
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    slack = SLACK * sum(fullest.values()) / GIB
    process = ON_GPU + asleep if learner.num_gpus else ON_CPU[kind]
    terms = (*_terms(held | fullest), Term("process", process + slack))
    # Of ranks that share their GPU, host memory holds the optimizer state while the engine generates.
    host = states.optimizer + states.step if away else states.optimizer if asleep else 0.0
    host += copies if learner.num_gpus else 0.0
    return GroupMemory(terms, host_gib=host / GIB)


@dataclass(frozen=True)
class TrainingStates:
    """Bytes of one rank: the first four stay, `gradients` until the step, `buckets` and `step` come and go."""

    weights: float
    optimizer: float
    buffers: float
    gradients: float
    buckets: float
    step: float


def training_states(learner: LearnerConfig, dtype: str, size: int) -> TrainingStates:
    """What ZeRO may shard of a model of `size` parameters, as DeepSpeed keeps it."""
    settings = deepspeed_config(learner, dtype=dtype)
    zero: Mapping[str, Any] = settings["zero_optimization"]
    number, share = _BYTES[dtype], size / learner.num_ranks
    sums_short = dtype == "bfloat16" and settings.get("data_types", {}).get("grad_accum_dtype") == "bf16"
    gradients = (2.0 if sums_short else 4.0) * size
    filled = min(int(zero.get("reduce_bucket_size", BUCKET)), size)
    # On a CPU a buffer takes room as far as it is filled.
    bucket = int(zero.get("reduce_bucket_size", BUCKET)) if learner.num_gpus else filled
    match int(zero["stage"]):
        case 0:
            master = 0.0 if dtype == "float32" else 4.0
            return TrainingStates(number * size, (8 + master) * size, 0, gradients, 4 * filled, 5 * size)
        case 3:
            live = (
                min(size, int(zero.get("stage3_max_live_parameters", LIVE))) if learner.num_ranks > 1 else 0
            )
            weights = number * (share + live)
            return TrainingStates(weights, 16 * share, 4 * bucket, 0, 4 * filled, 12 * share)
        case stage:
            buckets = number * bucket + (4 * filled if dtype == "bfloat16" else 0)
            gradients /= learner.num_ranks if stage == 2 else 1
            return TrainingStates(number * size, 12 * share, 0, gradients, buckets, 12 * share)


def activation_bytes(config: Config, shape: ModelShape) -> float:
    """What the forward pass of a full micro-batch keeps for the backward pass, and its largest gradient."""
    layer = layer_bytes(shape, width_of(config))
    border = width_of(config) * shape.width  # the hidden states between two layers
    recomputes = config.learner.gradient_checkpointing
    kept = shape.num_layers * border + layer if recomputes else shape.num_layers * layer
    return config.max_tokens_per_micro_batch * (kept + 3 * width_of(config) * shape.mlp_width)


def layer_bytes(shape: ModelShape, number: int) -> float:
    """Kept of one token by one layer with attention `segments`: norms in float32, attention, MLP."""
    norms = (8 + 4 * number) * shape.width
    return norms + 6 * number * shape.query_width + 4 * number * shape.mlp_width


def _head_bytes(config: Config, shape: ModelShape, gpu: bool) -> float:
    hidden = config.max_tokens_per_micro_batch * shape.width * (4 + width_of(config))
    return hidden + 4 * shape.vocabulary * shape.width + TILE_BYTES[gpu]


def rollout_memory(config: Config, shape: ModelShape) -> GroupMemory:
    """One GPU of an engine, or a CPU engine. What vLLM may take and does not need otherwise is its cache."""
    rollout, number = config.rollout, width_of(config)
    parts = rollout.tensor_parallel
    weights = number * shape.num_parameters / parts / GIB
    on_gpu = rollout.num_gpus > 0
    tokens = int(rollout.engine.get("max_num_batched_tokens", ENGINE_TOKENS if on_gpu else CPU_ENGINE_TOKENS))
    logits = 3 * 4 * rollout.max_num_seqs * shape.vocabulary
    work = (tokens * number * 4 * (shape.mlp_width + shape.width) / parts + logits) / GIB
    sample = config.data.max_prompt_tokens + config.data.max_response_tokens
    sample_gib = number * shape.kv_numbers * sample / max(1, parts) / GIB
    bucket = 2 * config.weight_sync.bucket_mb / 1024
    if on_gpu:
        process = ON_GPU + bucket
        cache = rollout.gpu_memory_utilization * config.cluster.gpu_memory_gib - weights - work - process
    else:  # weights of linear layers lie there a second time, as oneDNN wants them
        weights, process, cache = 2 * weights, ON_CPU["rollout"] + bucket, rollout.kv_cache_gib
    note = _cache_note(cache, sample_gib, rollout.max_num_seqs)
    terms = [Term("weights", weights), Term("KV cache", max(cache, sample_gib)), Term("work space", work)]
    if on_gpu and config.cluster.colocate:  # its own stay on the GPU in both turns
        states = training_states(config.learner, config.model.dtype, shape.num_parameters)
        shared = states.weights / GIB + ON_GPU
        terms.append(Term("learner's weights", shared))
    return GroupMemory((*terms, Term("process", process)), note=note)


def _cache_note(cache: float, sample_gib: float, max_num_seqs: int) -> str:
    samples = int(cache / sample_gib)
    if samples >= max_num_seqs:
        return f"cache for all {max_num_seqs} answers at once"
    return f"cache for {max(samples, 0)} of {max_num_seqs} answers at full length"


def reference_memory(config: Config, shape: ModelShape) -> GroupMemory:
    """One scorer: weights, and one layer at a time."""
    number, gpu = width_of(config), config.reference.num_gpus > 0
    tokens = config.max_tokens_per_micro_batch
    held = {
        "weights": float(number * shape.num_parameters),
        "activations": tokens * layer_bytes(shape, number),
        "log-probs": 4.0 * tokens * shape.width + TILE_BYTES[gpu],
    }
    return GroupMemory((*_terms(held), Term("process", ON_GPU if gpu else ON_CPU["reference"])))


_BYTES = {"float32": 4, "bfloat16": 2}


def width_of(config: Config) -> int:
    """Bytes of a number of the model."""
    return _BYTES[config.model.dtype]


def _terms(held: Mapping[str, float]) -> tuple[Term, ...]:
    return tuple(Term(name, size / GIB) for name, size in held.items() if size)
