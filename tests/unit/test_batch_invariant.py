"""With `model.batch_invariant` a token's numbers depend on its own sequence alone, bit for bit, and are the model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import ModelConfig
from hpt_ray.driver.step_metrics import check_gap
from hpt_ray.errors import SamplerMismatch, UserError
from hpt_ray.learner.attention import Segments
from hpt_ray.learner.batch_invariant import (
    TiledLinear,
    causal_attention,
    check_architecture,
    make_batch_invariant,
    tiled_linear,
)
from hpt_ray.learner.logprobs import ScorerInput, TokenScorer
from hpt_ray.learner.model import load_policy
from hpt_ray.tools.plan.shape import find_shape

TINY = "tests/cluster/tiny.yaml"
EXACT = "model.batch_invariant=true"
LENGTHS = (1, 2, 31, 32, 33, 40, 77, 5)
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 176,  # no multiple of the numbers that a vector instruction takes
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 83,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("columns", "rows"), [(64, 176), (176, 64), (64, 83), (896, 896), (4864, 896)])
def test_a_row_of_a_product_does_not_depend_on_the_others(columns: int, rows: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, columns), torch.randn(rows, columns) / columns**0.5, torch.randn(rows)
    whole = tiled_linear(x, weight, bias)
    for size in (1, 2, 7, 32, 100):
        assert torch.equal(torch.cat([tiled_linear(part, weight, bias) for part in x.split(size)]), whole)
    order = torch.randperm(300)
    assert torch.equal(tiled_linear(x[order], weight, bias), whole[order])
    # In one flat buffer with others a weight begins anywhere.
    moved = torch.empty(weight.numel() + 5)[5:].view_as(weight).copy_(weight)
    assert torch.equal(tiled_linear(x, moved, bias), whole)
    alone = torch.cat([F.linear(row, weight, bias) for row in x.split(1)])
    assert not torch.equal(alone, F.linear(x, weight, bias))  # what all this is for
    assert (whole - F.linear(x.double(), weight.double(), bias.double())).abs().max() < 1e-5


def test_a_tiled_product_has_the_gradient_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 10, dtype=torch.float64)
    x = torch.randn(3, 7, 24, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad((layer(x) ** 2).sum(), [x, layer.weight, layer.bias])
    found = torch.autograd.grad(
        (tiled_linear(x, layer.weight, layer.bias) ** 2).sum(), [x, layer.weight, layer.bias]
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (14, 1)])
def test_attention_is_the_same_in_one_pass_in_parts_and_token_by_token(heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    length, size = 70, 16
    q, k, v = (torch.randn(3, length, n, size) for n in (heads[0], heads[1], heads[1]))
    nothing = torch.zeros(3, dtype=torch.long)
    whole = causal_attention(q, k, v, nothing, 0.25)
    for size in (1, 7, 33):
        parts = [
            # What stands behind the keys seen is another block's rest in a paged cache.
            causal_attention(
                q[:, i : i + size], k[:, : i + size + 9], v[:, : i + size + 9], nothing + i, 0.25
            )
            for i in range(0, length, size)
        ]
        assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(causal_attention(q[1:2], k[1:2], v[1:2], nothing[:1], 0.25)[0], whole[1])
    expected = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, scale=0.25, enable_gqa=True
    )
    assert torch.allclose(whole.transpose(1, 2), expected, atol=1e-6)


def write(folder: Path, kind: str) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **SIZES, tie_word_embeddings=kind == "qwen2"), dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


def samples() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randint(0, SIZES["vocab_size"], (length + 1,)) for length in LENGTHS]


def packed(chosen: list[torch.Tensor]) -> ScorerInput:
    """All tokens but each sample's first are scored."""
    lengths = np.array([len(tokens) for tokens in chosen])
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.cat(chosen)
    before = torch.nonzero(positions).squeeze(1) - 1
    return ScorerInput(
        token_ids=tokens[None],
        position_ids=positions[None],
        before=before,
        targets=tokens[before + 1],
        temperature=torch.full((len(before),), 0.7),
        segments=Segments.from_lengths(lengths),
        responses=slice(0, len(before)),
        num_responses=len(before),
    )


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_logprobs_do_not_depend_on_the_pack_and_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    config = ModelConfig(path=write(tmp_path, kind), batch_invariant=True)
    exact = TokenScorer(load_policy(config, config.path, seed=0))
    plain = TokenScorer(load_policy(replace(config, batch_invariant=False), config.path, seed=0))
    scorer = {"exact": exact, "plain": plain}
    found = {name: one(packed(samples()))[0] for name, one in scorer.items()}
    order = [3, 7, 0, 6, 2, 5, 1, 4]
    shuffled = packed([samples()[i] for i in order])
    differs = {}
    for name, one in scorer.items():
        whole = found[name].detach().split(list(LENGTHS))
        with torch.no_grad():
            parts = one(shuffled)[0].split([LENGTHS[i] for i in order])
            again = dict(zip(order, parts, strict=True))
            alone = [one(packed([tokens]))[0] for tokens in samples()]
        differs[name] = [
            not torch.equal(mine, other) for i, mine in enumerate(whole) for other in (again[i], alone[i])
        ]
    assert not any(differs["exact"])
    assert any(differs["plain"])  # else the test would see nothing
    assert (found["exact"] - found["plain"]).abs().max() < 2e-5
    gradients = [
        torch.autograd.grad(found[name].mean(), list(one.model.parameters())) for name, one in scorer.items()
    ]
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm() + 1e-9


def test_tied_weights_stay_tied() -> None:
    config = AutoConfig.for_model("qwen2", **SIZES, tie_word_embeddings=True)
    model = make_batch_invariant(AutoModelForCausalLM.from_config(config))
    assert type(model.lm_head) is TiledLinear
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("kind", "particular", "words"),
    [
        ("gemma2", {}, "`model_type` is gemma2"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "`rope_type` is dynamic",
        ),
    ],
)
def test_other_models_are_refused_before_the_start(kind, particular, words, tmp_path) -> None:
    config = AutoConfig.for_model(kind, **{**SIZES, **particular})
    with pytest.raises(UserError, match=words):
        check_architecture(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        find_shape(ModelConfig(path=str(tmp_path), batch_invariant=True), str(tmp_path))
    find_shape(ModelConfig(path=str(tmp_path)), str(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        "model.dtype=bfloat16",
        "model.attention=sdpa",
        "rollout.num_gpus=1",
        "learner.num_gpus=1",
        "rollout.tensor_parallel=2",
        "rollout.top_p=0.9",
        "rollout.max_off_policy_steps=1",
        "rollout.engine={kv_cache_dtype: fp8}",
        "updates_per_step=2",
        "learner.lora.rank=4",
        "learner.sequence_parallel=2",
    ],
)
def test_settings_that_it_does_not_cover_are_refused(wrong: str) -> None:
    check_config(load_config(TINY, ["learner.num_ranks=2", wrong]))
    with pytest.raises(UserError, match=r"`model\.batch_invariant` needs") as refused:
        check_config(load_config(TINY, ["learner.num_ranks=2", wrong, EXACT]))
    key = wrong.partition("=")[0]
    assert f"`{key}`" in str(refused.value)
    assert str(refused.value).count("\n") == 0


def test_any_gap_at_any_step_stops_the_run() -> None:
    config = load_config(TINY, [EXACT])
    for step in (1, 7):
        check_gap(config, step, {"policy/logprob_gap_mean": 0.0, "policy/logprob_gap_max": 0.0})
        check_gap(config, step, {"policy/logprob_gap_mean": None})  # nothing was sampled
        with pytest.raises(SamplerMismatch, match=rf"at step {step} they differ by up to 1\.2e-07"):
            check_gap(config, step, {"policy/logprob_gap_mean": 1e-9, "policy/logprob_gap_max": 1.2e-7})
