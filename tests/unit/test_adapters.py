"""Adapters against the weights that they stand for, written out in plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel

from hpt_ray.config.schema import ModelConfig
from hpt_ray.config.training import LoRAConfig
from hpt_ray.data.mini.model import create_model
from hpt_ray.errors import UserError
from hpt_ray.learner.logprobs import TokenScorer
from hpt_ray.learner.lora import adapters_off, add_adapters, linear_layers, merged, targets, write_adapter
from hpt_ray.learner.model import export_policy, load_critic
from hpt_ray.tools.plan.shape import shape_of

CONFIG = LoRAConfig(rank=3, alpha=6.0)
SCALE = 2.0
IDS = torch.arange(1, 25)[None] % 60


def model_with(config: LoRAConfig = CONFIG, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """With adapters that add something."""
    model = create_model("t", seed=3).to(dtype)
    add_adapters(model, config, seed=1)
    random = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


def adapters_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def written_out(base: PreTrainedModel, adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + α/r · B·A of every weight that has an adapter."""
    weights = dict(base.named_parameters())
    for name in [name for name in adapters if name.endswith("lora_A")]:
        layer = name.removesuffix(".lora_A")
        product = adapters[f"{layer}.lora_B"] @ adapters[name]
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"].detach() + SCALE * product
    return weights


def test_the_gradient_is_that_of_the_weights_written_out() -> None:
    model, base = model_with(), create_model("t", seed=3).double()
    head = TokenScorer(model).head
    assert head is not None
    targets_, ones = IDS[0, 1:], torch.ones(IDS.shape[1] - 1, dtype=torch.float64)

    hidden = model.base_model(IDS).last_hidden_state[0, :-1]
    head(hidden, targets_, ones, False)[0].sum().backward()

    mine = adapters_of(model)
    theirs = {name: p.detach().clone().requires_grad_() for name, p in mine.items()}
    logits = functional_call(base, written_out(base, theirs), (IDS,)).logits[0, :-1]
    torch.log_softmax(logits, -1).gather(1, targets_[:, None]).sum().backward()

    assert len(mine) == 2 * len(linear_layers(base))
    for name, parameter in mine.items():
        assert parameter.grad is not None
        assert theirs[name].grad.norm() > 0  # type: ignore[union-attr]
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12), name  # type: ignore[arg-type]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_steps_move_the_adapters_alone() -> None:
    model, before = model_with(), {name: p.clone() for name, p in model_with().named_parameters()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS).logits.square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_off_is_the_base_bit_for_bit_and_new_adapters_add_nothing() -> None:
    base, model = create_model("t", seed=3), model_with(dtype=torch.float32)
    expected = base(IDS).logits
    assert not torch.equal(model(IDS).logits, expected)
    with adapters_off(model):
        assert torch.equal(model(IDS).logits, expected)
    assert not torch.equal(model(IDS).logits, expected)
    add_adapters(base, CONFIG, seed=7)
    assert torch.equal(base(IDS).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merged_weights_compute_what_the_adapters_do(dtype: torch.dtype) -> None:
    model = model_with(dtype=dtype)
    plain = create_model("t", seed=3).to(dtype)
    weights = dict(merged(model.named_parameters(), CONFIG))
    assert {n: w.shape for n, w in weights.items()} == {n: p.shape for n, p in plain.named_parameters()}
    assert {w.dtype for w in weights.values()} == {dtype}
    exact = written_out(plain.double(), {name: p.double() for name, p in adapters_of(model).items()})
    for name, weight in weights.items():
        if dtype == torch.bfloat16:  # rounded once, to the nearest
            assert torch.equal(weight, exact[name].bfloat16()), name
    error = (functional_call(plain, weights, (IDS,)).logits - model(IDS).logits).abs().max()
    assert error < {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 0.1}[dtype]


def test_an_export_is_the_merged_model_and_an_adapter_for_peft(tmp_path: Path) -> None:
    base, model = create_model("t", seed=3), model_with(dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    adapters: dict[str, Tensor] = {}
    export_policy(
        model,
        dict(merged(model.named_parameters(), CONFIG, adapters)),
        str(tmp_path / "base"),
        tmp_path / "hf",
    )
    write_adapter(tmp_path / "hf" / "adapter", adapters, CONFIG, str(tmp_path / "base"))

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        assert (loaded(IDS).logits - model(IDS).logits).abs().max() < 1e-5

    described = json.loads((tmp_path / "hf" / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (3, 6.0, "all-linear")
    saved = load_file(tmp_path / "hf" / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in saved
    read = {
        name.removeprefix("base_model.model.").removesuffix(".weight"): tensor
        for name, tensor in saved.items()
    }
    again = written_out(base, read)
    assert all(torch.allclose(p, again[name], atol=1e-6) for name, p in loaded.named_parameters())


def test_a_critic_trains_its_adapters_and_the_whole_head(tmp_path: Path) -> None:
    create_model("t", seed=3).save_pretrained(tmp_path)
    critic = load_critic(ModelConfig(path=str(tmp_path)), str(tmp_path), seed=0)
    add_adapters(critic, CONFIG, seed=1)
    trained = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"score.weight", "score.bias"}
    assert len(trained) == 2 + 2 * len(linear_layers(create_model("t", seed=3)))


def test_targets_are_ends_of_names_and_a_wrong_one_is_told_what_there_is() -> None:
    names = list(linear_layers(create_model("t", seed=0)))
    assert targets(names, ["all-linear"]) == names
    assert targets(names, ["q_proj", "1.mlp.up_proj"]) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    for wrong in ["lm_head", "proj", "c_attn"]:
        with pytest.raises(
            UserError, match=rf"names {wrong}, but .*: q_proj, k_proj, v_proj, o_proj, .*_proj\."
        ):
            targets(names, ["q_proj", wrong])
    with pytest.raises(UserError, match="names nothing"):
        targets(names, [])


@pytest.mark.parametrize("target_modules", [["all-linear"], ["q_proj", "down_proj"]])
def test_the_plan_counts_the_adapters(target_modules: list[str]) -> None:
    config = LoRAConfig(rank=5, target_modules=target_modules)
    model = model_with(config)
    assert shape_of(create_model("t", seed=0).config).adapter_numbers(config) == sum(
        p.numel() for p in adapters_of(model).values()
    )
