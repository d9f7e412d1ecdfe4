"""The memory that is planned against the memory that real engines and real forward passes hold, on the CPU."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from hpt_ray.cluster.meeting import Meeting, open_meeting
from hpt_ray.config.training import LearnerConfig, LoRAConfig
from hpt_ray.data.mini.model import create_model, model_config
from hpt_ray.learner.attention import Segments
from hpt_ray.learner.deepspeed import DeepSpeedEngine, join_ranks
from hpt_ray.learner.logprobs import TokenScorer
from hpt_ray.learner.lora import add_adapters
from hpt_ray.learner.scorer_input import ScorerInput
from hpt_ray.tools.plan.memory import layer_bytes, training_states
from hpt_ray.tools.plan.shape import shape_of

TOLERANCE = 0.05
BUCKET = 500_000  # numbers; smaller than the model, or buffers of the default size would be all there is
LIMIT_S = 240.0
ZERO = {
    "reduce_bucket_size": BUCKET,
    "stage3_max_live_parameters": 0,  # gathered weights come and go, so nothing to compare with stands still
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}

# Stage, number of ranks, dtype, rank of adapters.
ENGINES = [
    (0, 1, "float32", 0),
    (1, 1, "float32", 0),
    (2, 2, "bfloat16", 0),
    (3, 2, "bfloat16", 0),
    (2, 2, "bfloat16", 64),
    (3, 2, "bfloat16", 64),
]


def learner(stage: int, world_size: int, lora_rank: int) -> LearnerConfig:
    """With a pull to the base, but for the first of `ENGINES` and adapters."""
    return LearnerConfig(
        num_ranks=world_size,
        zero_stage=stage,
        base_pull=float(stage > 0 and not lora_rank),
        deepspeed={"zero_optimization": ZERO},
        lora=LoRAConfig(rank=lora_rank),
    )


def live_bytes() -> int:
    """Bytes of all storages that a tensor of this process holds, but for frozen ones."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    storages.pop(0, None)
    return sum(storages.values())


class Peak(TorchDispatchMode):
    """The most bytes that were live after any operation that made a large tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._seen, self._counting = 0, set[int](), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        large = [
            tensor.untyped_storage().data_ptr()
            for tensor in (result if isinstance(result, (list, tuple)) else [result])
            if isinstance(tensor, torch.Tensor) and tensor.numel() > BUCKET
        ]
        if not self._counting and not self._seen.issuperset(large):  # a view makes nothing
            self._seen.update(large)
            self._counting = True
            self.bytes = max(self.bytes, live_bytes())
            self._counting = False
        return result


Ranks = list[ProcessPoolExecutor]


def join(rank: int, world_size: int, meeting: Meeting) -> None:
    limits: dict[str, Any] = {"world_size": world_size, "gpu": False, "timeout_s": LIMIT_S}
    join_ranks(meeting, None, rank=rank, **limits)


@pytest.fixture(scope="module")
def ranks() -> Iterator[dict[int, Ranks]]:
    """Processes that have joined as the ranks of one group, by their number.

    A process takes longer to import than an engine to train, so engines have their processes one after another.
    """
    context = multiprocessing.get_context("spawn")
    groups: dict[int, Ranks] = {}
    joined = []
    with ExitStack() as stack:
        for world_size in {world_size for _, world_size, *_ in ENGINES}:
            meeting, held = open_meeting("127.0.0.1")
            stack.callback(os.close, held)
            groups[world_size] = []
            for rank in range(world_size):
                pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
                joined.append(pool.submit(join, rank, world_size, meeting))
                groups[world_size].append(pool)
        for one in joined:
            one.result(LIMIT_S)
        yield groups


def train(world_size: int, stage: int, dtype: str, lora_rank: int) -> tuple[int, int, int]:
    """Two steps of one rank; its bytes in the second one: between micro-batches, at the peaks of pass and step."""
    gc.collect()
    gc.freeze()  # what was imported is not looked through again each time
    before = live_bytes()
    model = create_model("m", seed=0).to(getattr(torch, dtype))
    config = learner(stage, world_size, lora_rank)
    if lora_rank:
        add_adapters(model, config.lora, seed=0)
    engine = DeepSpeedEngine(model, config, dtype=dtype, world_size=world_size)
    passing: list[int] = []
    for parameter in model.get_decoder().layers[0].parameters():  # the last that a pass comes to
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _: passing.append(live_bytes()))
    ids = torch.arange(8)[None]
    for _ in range(2):  # the optimizer's moments are there from the first step on
        for _ in range(2):
            loss = engine.forward(input_ids=ids).logits.float().square().mean()
            passing.clear()
            engine.backward(loss)
        torch.distributed.barrier()  # what a rank sends is alive until the other one has it
        gc.collect()
        summing = live_bytes() - before
        engine.reduce()
        with Peak() as peak:
            engine.step(1e-3)
    torch.distributed.barrier()
    return summing, max(passing) - before, peak.bytes - before


@pytest.mark.parametrize(("stage", "world_size", "dtype", "lora_rank"), ENGINES)
def test_an_engine_holds_what_is_planned(
    stage: int, world_size: int, dtype: str, lora_rank: int, ranks: dict[int, Ranks]
) -> None:
    training = [rank.submit(train, world_size, stage, dtype, lora_rank) for rank in ranks[world_size]]
    measured = [one.result(LIMIT_S) for one in training]
    config, shape = learner(stage, world_size, lora_rank), shape_of(model_config("m"))
    states = training_states(config, dtype, shape.num_parameters, shape.adapter_numbers(config.lora))
    held = states["weights"] + states["optimizer"] + states["buffers"]
    for summing, passing, step_peak in measured:
        assert summing == pytest.approx(held + states["gradients"], rel=TOLERANCE)
        if stage >= 2:
            # Ranks meet in every pass; with ZeRO 3 a layer is whole, too, which is little beside a whole gradient.
            assert passing <= (held + states["gradients"] + states["buckets"]) * (1 + TOLERANCE)
        if stage == 0:
            continue  # it steps parameter by parameter, with small temporaries
        # Up to what is left of the gradients, which each stage lets go at another moment.
        assert states["step"] * (1 - TOLERANCE) <= step_peak - held
        assert step_peak - held <= states["step"] * (1 + TOLERANCE) + states["gradients"]


def begin(world_size: int, stage: int) -> bool:
    """Whether the whole model goes to the rank's device as its engine starts."""
    model = create_model("m", seed=0)
    moved = []
    model.to = lambda *_, **__: moved.append(True)
    DeepSpeedEngine(model, learner(stage, world_size, 0), dtype="float32", world_size=world_size)
    torch.distributed.barrier()
    return bool(moved)


@pytest.mark.parametrize("stage", [1, 3])
def test_with_zero_3_no_rank_takes_the_whole_model(stage: int, ranks: dict[int, Ranks]) -> None:
    world_size = max(ranks)
    starting = [rank.submit(begin, world_size, stage) for rank in ranks[world_size]]
    assert [one.result(LIMIT_S) for one in starting] == [stage != 3] * world_size


def scorer_and_samples(num_layers: int, dtype: str, architecture: Any) -> tuple[TokenScorer, ScorerInput]:
    """A policy in training, and 256 tokens for it."""
    config = model_config("s", architecture)
    config.num_hidden_layers = num_layers
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * num_layers
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation="segments"
    )
    lengths = np.full(4, 64)
    ids = torch.arange(256) % 50
    before = torch.tensor([t for t in range(255) if t % 64 != 63])
    samples = ScorerInput(
        token_ids=ids[None],
        position_ids=(torch.arange(256) % 64)[None],
        before=before,
        targets=ids[before + 1],
        temperature=torch.ones(len(before)),
        segments=Segments.from_lengths(lengths),
        responses=slice(0, len(before)),
        num_responses=len(before),
    )
    return TokenScorer(model.train()), samples


def saved_bytes_per_token(num_layers: int, dtype: str, architecture: Any, recompute: bool) -> float:
    """What a forward pass keeps for the backward pass, apart from parameters."""
    scorer, samples = scorer_and_samples(num_layers, dtype, architecture)
    if recompute:
        scorer.model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = {parameter.untyped_storage().data_ptr() for parameter in scorer.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer(samples)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 256


@pytest.mark.parametrize(("dtype", "number"), [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_a_layer_keeps_what_is_planned(dtype: str, number: int, architecture: Any) -> None:
    shape = shape_of(model_config("s", architecture))
    measured = [saved_bytes_per_token(layers, dtype, architecture, recompute=False) for layers in (2, 4)]
    assert (measured[1] - measured[0]) / 2 == pytest.approx(layer_bytes(shape, number), rel=TOLERANCE)
    measured = [saved_bytes_per_token(layers, dtype, architecture, recompute=True) for layers in (2, 4)]
    assert (measured[1] - measured[0]) / 2 == pytest.approx(number * shape.width, rel=TOLERANCE)


@pytest.mark.parametrize(("dtype", "number"), [("bfloat16", 2), ("float32", 4)])
def test_what_offloading_would_move_is_what_each_layer_starts_from(dtype: str, number: int) -> None:
    """The hooks stand where transformers has those of `offload`, which needs a GPU; they copy to the same device."""
    torch.manual_seed(0)
    scorer, samples = scorer_and_samples(3, dtype, "qwen2")
    gradients, moved = [], []

    def leave(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.nbytes)
        return tensor.clone()

    def through_the_host(function: Any, *args: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(leave, torch.clone):
            return checkpoint(function, *args, use_reentrant=False)

    for function in (partial(checkpoint, use_reentrant=False), through_the_host):
        scorer.model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)
        scorer.zero_grad()
        scorer(samples)[0].sum().backward()
        gradients.append([parameter.grad.clone() for parameter in scorer.parameters()])
    assert all(map(torch.equal, *gradients))
    assert sum(moved) == 256 * 3 * number * scorer.model.config.hidden_size
