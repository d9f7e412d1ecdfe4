"""Slices of a micro-batch on real ranks (gloo) against the whole of it in one process, on small models in float64."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hpt_ray.cluster.meeting import Meeting, open_meeting
from hpt_ray.config.load import load_config
from hpt_ray.errors import UserError
from hpt_ray.learner.logprobs import TokenScorer
from hpt_ray.learner.model import switch_dropout_off
from hpt_ray.learner.packing import WeightedSample, dummy_micro_batch, make_micro_batch
from hpt_ray.learner.scorer_input import ScorerInput
from hpt_ray.learner.sequence_parallel import ALONE, SequenceRanks, check_model, make_sequence_ranks
from hpt_ray.tools.plan.survey import check_sharing
from hpt_ray.types import MicroBatch, Sample

WORLD, LIMIT_S = 4, 120.0
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 50,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
THREE_KEYS = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 3}
# Type, what is particular, whether activations are recomputed.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "grouped-query": ("qwen2", {}, False),
    "one-key-head": ("llama", {"num_key_value_heads": 1}, False),
    "keys-that-ranks-do-not-divide": ("llama", THREE_KEYS, False),
    "recomputed": ("qwen3", {}, True),
    "window": ("mistral", {"sliding_window": 5}, True),
    "soft-caps": ("gemma2", {"sliding_window": 7}, False),
    "sinks": ("gpt_oss", {"sliding_window": 6, **EXPERTS}, False),
    "learned-positions": ("gpt2", {}, False),
    "experts": ("mixtral", EXPERTS, True),
}
# Prompt and response of each sample.
PACKS = {
    "crossing-borders": [(1, 1), (3, 20), (9, 2), (1, 60), (30, 1), (4, 4)],
    "slices-without-responses": [(100, 3)],
    "one-border-before-the-first-response": [(8, 8)],
    "dummy": [],  # fewer tokens than ranks
}


def model_of(name: str) -> PreTrainedModel:
    model_type, particular, recompute = MODELS[name]
    config = AutoConfig.for_model(model_type, **{**SMALL, **particular})
    switch_dropout_off(config)
    kinds = {
        "attn_implementation": "segments",
        "experts_implementation": "eager",
    }  # the others take no float64
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, **kinds)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) + (p.dim() == 1))
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def pack_of(name: str, seed: int = 0) -> MicroBatch:
    random = np.random.default_rng(seed)
    samples = [
        Sample(
            prompt_id=f"q/{i}",
            token_ids=random.integers(0, SMALL["vocab_size"], prompt + response).astype(np.int32),
            prompt_length=prompt,
            old_logprobs=np.zeros(response, np.float32),
            is_demo=i % 3 == 0,
            reward=0.0,
            group=i,
        )
        for i, (prompt, response) in enumerate(PACKS[name])
    ]
    if not samples:
        return dummy_micro_batch(1)
    return make_micro_batch([WeightedSample(sample, np.zeros((1, 1)), np.zeros(1)) for sample in samples])


def scored(
    model: str, micro_batch: MicroBatch, ranks: SequenceRanks = ALONE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log π and entropy of all response tokens, and this rank's gradient of one loss that mixes all of both."""
    scorer = TokenScorer(model_of(model))
    packed = ScorerInput.from_micro_batch(micro_batch, temperature=0.7, device="cpu", ranks=ranks)
    logprob, entropy = (found.double() for found in scorer(packed, entropy_grad=True))
    loss = (logprob.sum() * entropy.mean() + logprob.cumsum(0).square().mean()) / 10
    gradients = torch.autograd.grad(loss, list(scorer.parameters()))
    return logprob.detach(), entropy.detach(), torch.cat([gradient.flatten() for gradient in gradients])


# -- in the ranks ----------------------------------------------------------------------------------

_ranks: dict[int, SequenceRanks] = {}


def join(rank: int, meeting: Meeting) -> None:
    store = meeting.store(world_size=WORLD, timeout_s=LIMIT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    for size in (2, 4):
        _ranks[size] = make_sequence_ranks(size, secret=meeting.secret, timeout_s=LIMIT_S)


def scored_by_ranks(size: int, model: str, micro_batch: MicroBatch) -> Any:
    return tuple(tensor.numpy() for tensor in scored(model, micro_batch, _ranks[size]))


@pytest.fixture(scope="module")
def pools() -> Iterator[list[ProcessPoolExecutor]]:
    """Processes that have joined as the ranks of one group."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        meeting, held = open_meeting("127.0.0.1")
        stack.callback(os.close, held)
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(WORLD)]
        for joined in [pool.submit(join, rank, meeting) for rank, pool in enumerate(pools)]:
            joined.result(LIMIT_S)
        yield pools


# -- what they compute -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_slices_have_the_numbers_and_the_gradient_of_the_whole(pools, model: str, size: int) -> None:
    """Each rank has the log-probs of all; the gradients of the ranks add up to that of one."""
    for pack in PACKS:
        micro_batches = [pack_of(pack, seed=first) for first in range(0, WORLD, size)]
        running = [
            pool.submit(scored_by_ranks, size, model, micro_batches[rank // size])
            for rank, pool in enumerate(pools)
        ]
        found = [[torch.from_numpy(part) for part in each.result(LIMIT_S)] for each in running]
        for team, micro_batch in enumerate(micro_batches):
            logprob, entropy, gradient = scored(model, micro_batch)
            of_team = found[team * size : (team + 1) * size]
            for its_logprob, its_entropy, _ in of_team:
                assert (its_logprob - logprob).abs().max() < 1e-6
                assert (its_entropy - entropy).abs().max() < 1e-6
            total = sum(its_gradient for *_, its_gradient in of_team)
            assert (total - gradient).norm() < 1e-6 * gradient.norm()


def test_slices_hold_every_token_and_every_response_once() -> None:
    micro_batch = pack_of("crossing-borders")
    for size in (2, 3, 5, 200):
        parts = [
            ScorerInput.from_micro_batch(
                micro_batch, temperature=1.0, device="cpu", ranks=SequenceRanks(size, rank)
            )
            for rank in range(size)
        ]
        tokens = torch.cat([part.token_ids[0] for part in parts])
        assert {part.token_ids.shape for part in parts} == {(1, len(tokens) // size)}
        assert tokens[: micro_batch.num_tokens].tolist() == micro_batch.token_ids.tolist()
        assert len(tokens) - micro_batch.num_tokens < size
        assert int(parts[0].segments.lengths.sum()) == len(tokens)
        whole = ScorerInput.from_micro_batch(micro_batch, temperature=1.0, device="cpu")
        begin = len(tokens) // size
        assert torch.equal(torch.cat([part.before + i * begin for i, part in enumerate(parts)]), whole.before)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


# -- what is refused -------------------------------------------------------------------------------

LFM2 = {"layer_types": ["full_attention", "conv"]}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}


@pytest.mark.parametrize(
    ("model_type", "particular", "size", "message"),
    [
        ("qwen2", {}, 3, "has 4 heads of attention, which the ranks share evenly: use one of 1, 2, 4"),
        ("mamba", {}, 1, None),
        ("lfm2", LFM2, 2, "there are layers of conv"),
        ("bamba", {"attn_layer_indices": [1]}, 2, "layers carry a state from token to token"),
        ("llama", DYNAMIC, 2, "RoPE follows the longest sequence that a rank sees"),
        ("qwen2", {}, 2, None),
        ("gemma3_text", {}, 4, None),
    ],
)
def test_models_whose_tokens_meet_elsewhere_are_refused(
    model_type: str, particular: dict[str, Any], size: int, message: str | None
) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SMALL, **particular}))
    if message is None:
        check_model(model, size)
        return
    with pytest.raises(UserError) as caught:
        check_model(model, size)
    assert message in str(caught.value)


def test_the_plan_refuses_them_before_the_start() -> None:
    words = ["model.path=Qwen2.5-0.5B", "learner.num_ranks=4", "learner.sequence_parallel=4"]
    with pytest.raises(UserError, match=r"14 heads of attention, .*: use one of 1, 2, 7, 14\."):
        check_sharing(load_config(None, words))
    check_sharing(load_config(None, [*words, "learner.sequence_parallel=2"]))
