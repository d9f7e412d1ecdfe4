"""The policy as it is loaded, and its weights as they are sent: on models of transformers, without memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from hpt_ray.config.schema import ModelConfig
from hpt_ray.learner.model import Published, load_policy

SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 50,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
RANDOM = {
    "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    "mixtral": ("attention_dropout", "router_jitter_noise"),
    "gpt_neox": ("attention_dropout", "hidden_dropout"),
}


def named(model_type: str, **particular: object) -> dict[str, tuple[int, ...]]:
    """Name and shape of every part that is sent."""
    config = AutoConfig.for_model(model_type, **{**SMALL, **particular})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    published = Published(model)
    first, again = (
        {
            name: tuple(part.shape)
            for whole, parameter in model.named_parameters()
            for name, part in published.parts_of(whole, parameter.detach())
        }
        for _ in range(2)
    )
    assert first == again
    assert list(first) == list(again)
    return first


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma3_text", "phi3", "olmo2"])
def test_weights_keep_their_names_where_a_checkpoint_has_the_same(model_type):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL))
    assert list(named(model_type)) == [name for name, _ in model.named_parameters()]


def test_experts_are_sent_one_by_one():
    names = named("qwen3_moe", **EXPERTS)
    of_experts = {name: shape for name, shape in names.items() if ".experts." in name}
    assert of_experts == {
        f"model.layers.0.mlp.experts.{i}.{name}_proj.weight": shape
        for name, shape in (("gate", (16, 32)), ("up", (16, 32)), ("down", (32, 16)))
        for i in range(3)
    }
    names = named("mixtral", num_local_experts=2)
    assert "model.layers.0.block_sparse_moe.gate.weight" in names
    assert names["model.layers.0.block_sparse_moe.experts.1.w2.weight"] == (32, 64)


def test_what_is_sent_is_what_a_checkpoint_holds(tmp_path: Path):
    """The parts, put together by transformers again, are the model."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SMALL, **EXPERTS))
    published = Published(model)
    sent = {
        name: part
        for whole, parameter in model.named_parameters()
        for name, part in published.parts_of(whole, parameter.detach())
    }
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert sent.keys() == held.keys()
    assert all(torch.equal(sent[name], held[name]) for name in held)


@pytest.mark.parametrize("model_type", RANDOM)
def test_nothing_is_random_in_training(tmp_path: Path, model_type: str):
    """A learner with dropout computes another model than the one that was sampled from."""
    config = AutoConfig.for_model(model_type, **SMALL, **dict.fromkeys(RANDOM[model_type], 0.3))
    config.save_pretrained(tmp_path)
    loaded = ModelConfig(random_init=True, attention="eager")
    model = load_policy(loaded, str(tmp_path), seed=0).train()
    assert [getattr(model.config, key) for key in RANDOM[model_type]] == [0.0] * len(RANDOM[model_type])
    tokens = torch.arange(1, 9)[None]
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_dropout_that_the_run_asks_for_stays(tmp_path: Path):
    AutoConfig.for_model("gpt2", **SMALL).save_pretrained(tmp_path)
    config = ModelConfig(random_init=True, config_overrides={"resid_pdrop": 0.2})
    assert load_policy(config, str(tmp_path), seed=0).config.resid_pdrop == 0.2
