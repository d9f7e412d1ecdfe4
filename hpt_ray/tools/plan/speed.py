"""Seconds of a step on a stated card, fine enough to tell layouts apart. Estimates, not compared with any GPU run.

In: a configuration, its plan and a `Card`. Out: seconds by part. b are the bytes of a number, P parameters, A those
that train, R ranks, E engines of t GPUs, U updates, M micro-batches of a rank, W the
bandwidth of the card's memory; lengths and utilisations are `cost.EXPECTED`:

    generation  responses/(E·B) · response · d with B sequences at once, as many as the cache holds of them; a decoding
                step d reads weights (of experts those that B tokens go to) and cache, b·(P + B·kv·length) / t, at
                `DECODING` of W, and takes `STEP_S` at least; with t > 1 come two all-reduces a layer, each `LATENCY_S`
                and 2·(t−1)/t·b·B·width over the link. Evaluations take as long a token
    learning    training and scoring at their utilisation of the card's peak
    exchange    (R−1)/R over the link of: ZeRO 1 (4 + b)·A·U, ZeRO 2 4·A·M + b·A·U, ZeRO 3 4·A·M and b·P for each pass
                of each of M; of s ranks that share micro-batches 2·b·(query + key width)·(s−1)/s a token, layer and
                pass; none of it hidden
    offload     with `learner.offload_optimizer` (4·M + b·U)·A/R over PCIe, 4·U in place of 4·M with ZeRO 1, and 28·A·U
                over the host's memory, which all ranks share
    borders     with `learner.offload_activations` 2·b·width a token and layer over PCIe, none of it hidden
    turns       where the sides take turns on their GPUs `TURNS_S`, and what leaves and comes back over PCIe
    sync        b·P over the link, or through the host by gloo where cards are shared

Colocated parts add up; of separate groups the shorter side is waited for by `cost.WAITING` of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from hpt_ray.algorithms import Estimator
from hpt_ray.config.schema import Config
from hpt_ray.tools.plan.cost import EXPECTED, WAITING, DataFacts, rollouts_drawn, samples_of, step_flops
from hpt_ray.tools.plan.make import Plan
from hpt_ray.tools.plan.memory import GIB, width_of
from hpt_ray.tools.plan.shape import ModelShape

Choice = tuple[Config, Estimator, str, int]  # a phase's configuration, estimator, gate and number of rollouts
# Of memory bandwidth, the wait for the longest response included; a 7B on an A100 then gets what cost.py gives it.
DECODING = 0.15
STEP_S = {True: 0.02, False: 0.005}  # of a decoding step, eager (measured: 0.022) or by graphs (assumed)
LATENCY_S = 20e-6  # of an all-reduce; assumed
TURNS_S = 1.2  # measured with a tiny model: offload, sleep and commit
GLOO = 1e9  # bytes/s; 1.5e9 was measured to one engine, half of it to four processes
HOST = 50e9  # bytes/s of a host's memory that AdamW gets on CPUs; assumed


@dataclass(frozen=True)
class Card:
    """A GPU (H100 and H200: SXM). Peak, dense, memory bandwidth and NVLink as NVIDIA prints them.

    PCIe is taken for four fifths of what is printed, and GiB for a little less than on the box, as torch finds it.
    """

    name: str
    gib: float
    flops: float  # bfloat16, a second
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s to another card, one way: NVLink, or PCIe where it has none
    pcie: float  # bytes/s to the host, one way


CARDS = {  # by the memory on the box
    "24": Card("RTX 4090", 23.5, 165e12, 1.01e12, 25e9, 25e9),
    "48": Card("L40S", 44.3, 362e12, 0.86e12, 25e9, 25e9),
    "80": Card("H100", 79.0, 989e12, 3.35e12, 450e9, 50e9),
    "141": Card("H200", 139.5, 989e12, 4.8e12, 450e9, 50e9),
}


def step_seconds(choice: Choice, shape: ModelShape, plan: Plan, card: Card) -> dict[str, float]:
    """Expected seconds by part of a step; `step` is all of it."""
    config, estimator, gate, num_rollouts = choice
    learner, number, shared = config.learner, width_of(config), config.cluster.colocate
    flops = step_flops(*choice, shape, DataFacts(), EXPECTED)
    prompt, response, samples = samples_of(config, gate, num_rollouts, DataFacts(), EXPECTED)
    ranks, updates = learner.num_ranks, config.updates_per_step
    tokens = config.prompts_per_step * sum(count * length for count, length in samples)
    sharing = learner.sequence_parallel
    micro = max(updates, ceil(tokens * sharing / ranks / config.max_tokens_per_micro_batch))
    whole, trained = shape.num_parameters, shape.adapter_numbers(learner.lora) or shape.num_parameters

    operations = flops["training"] / EXPECTED.training + flops["scoring"] / EXPECTED.scoring
    parts = {"learning": operations / (ranks * card.flops)}
    summed = updates if learner.zero_stage <= 1 else micro
    sent = (4 * summed + number * updates) * trained
    if learner.zero_stage == 3:
        sent = micro * (4 * trained + (2 + learner.gradient_checkpointing) * number * whole)
    heads = 2 * number * shape.num_layers * (shape.query_width + shape.key_width)
    passed = tokens / ranks * heads * (2 + learner.gradient_checkpointing) * (sharing - 1) / sharing
    parts["exchange"] = (sent * (ranks - 1) / ranks + passed) / card.link
    if learner.offload_activations:
        parts["borders"] = 2 * tokens / ranks * shape.num_layers * number * shape.width / card.pcie
    if learner.offload_optimizer:
        moved = (4 * summed + number * updates) * trained / ranks
        parts["offload"] = moved / card.pcie + 28 * updates * trained / HOST
    if not num_rollouts:
        return parts | {"step": sum(parts.values())}

    drawn = rollouts_drawn(estimator, num_rollouts, EXPECTED)
    generation = _generation(config, shape, plan, card, prompt, response, drawn)
    parts["generation"] = generation * (1 + flops["evaluation"] / flops["generation"])
    both = (parts["generation"], sum(parts.values()) - parts["generation"])
    after = {"sync": number * whole / (GLOO if shared else card.link)}
    if config.cluster.in_turns:
        memory = next(group.memory for group in plan.groups if group.kind == "learner")
        leaving = 0.0 if memory is None or learner.offload_optimizer else memory.host_gib * GIB
        after["turns"] = TURNS_S + 2 * leaving / card.pcie
    step = max(both) + (1.0 if shared else WAITING) * min(both) + sum(after.values())
    return parts | after | {"step": step}


def _generation(
    config: Config,
    shape: ModelShape,
    plan: Plan,
    card: Card,
    prompt: float,
    response: float,
    num_rollouts: float,
) -> float:
    """Seconds in which the engines answer a step's prompts."""
    rollout, number, parts = config.rollout, width_of(config), config.rollout.tensor_parallel
    memory = next(group.memory for group in plan.groups if group.kind == "rollout")
    assert memory is not None, "the model's shape is known"
    cache = next(term.gib for term in memory.terms if term.name == "KV cache") * GIB * parts
    token = number * shape.kv_numbers
    responses = config.prompts_per_step * num_rollouts / rollout.num_workers
    at_once = max(1.0, min(responses, rollout.max_num_seqs, cache / token / (prompt + response)))
    active = shape.num_parameters - shape.num_idle
    read = number * min(shape.num_parameters, at_once * active) + at_once * token * (prompt + response / 2)
    seconds = max(STEP_S[rollout.is_eager], read / parts / (card.bandwidth * DECODING))
    if parts > 1:
        reduced = 2 * (parts - 1) / parts * number * at_once * shape.width
        seconds += 2 * shape.num_layers * (LATENCY_S + reduced / card.link)
    return responses / at_once * response * seconds
