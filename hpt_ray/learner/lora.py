"""Low-rank adapters on linear layers (LoRA, arXiv 2106.09685): W·x + b + α/r · B·A·x, of which A and B train.

The layers keep the names of their weights, and everybody outside the ranks sees one weight, W + α/r · B·A (`merged`):
an engine, an export, a replay need not know. With the adapters off the model is the one that training began with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from hpt_ray.config.training import LoRAConfig
from hpt_ray.errors import UserError

ALL = "all-linear"
A, B = "lora_A", "lora_B"


class LoRALinear(torch.nn.Module):
    """A linear layer with an adapter that adds nothing yet: B is 0."""

    def __init__(self, layer: torch.nn.Linear, config: LoRAConfig, random: torch.Generator):
        super().__init__()
        # They come before the weight wherever parameters are listed, as `merged` needs it.
        self.lora_A = torch.nn.Parameter(layer.weight.new_empty(config.rank, layer.in_features))
        self.lora_B = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features, config.rank))
        torch.nn.init.kaiming_uniform_(self.lora_A, a=sqrt(5), generator=random)
        self.weight: Tensor = layer.weight
        self.bias: Tensor | None
        self.register_parameter("bias", layer.bias)
        self.scale = scale_of(config)
        self.is_off = False

    def forward(self, x: Tensor) -> Tensor:
        # Off is times 0, not left out: ZeRO 3 gathers parameters in the order of the passes before.
        low = F.linear(x, self.lora_A) * (0.0 if self.is_off else self.scale)
        return F.linear(x, self.weight, self.bias) + F.linear(low, self.lora_B)


def scale_of(config: LoRAConfig) -> float:
    """α/r."""
    return config.alpha / max(config.rank, 1)


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """What may have an adapter, by name: the plain linear layers, but for a head."""
    return {
        f"{model.base_model_prefix}.{name}": layer
        for name, layer in model.base_model.named_modules()
        if type(layer) is torch.nn.Linear
    }


def targets(names: Iterable[str], target_modules: Sequence[str]) -> list[str]:
    """Which of the layers `names` are meant. Raises `UserError` for a target that means none."""
    names = list(names)
    chosen = {t: [n for n in names if t == ALL or f".{n}".endswith(f".{t}")] for t in target_modules}
    if not chosen or not all(chosen.values()):
        absent = ", ".join(target for target in chosen if not chosen[target]) or "nothing"
        there = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names)) or "none"
        raise UserError(
            f"learner.lora.target_modules names {absent}, but the linear layers of the model that may have an adapter "
            f"are: {there}. `[{ALL}]` means all of them."
        )
    meant = {name for some in chosen.values() for name in some}
    return [name for name in names if name in meant]


def add_adapters(model: PreTrainedModel, config: LoRAConfig, *, seed: int) -> None:
    """Freeze the model, but for a value head, and give its target layers adapters. Equal seeds, equal adapters.

    Raises `UserError` for a target that it does not have.
    """
    layers = linear_layers(model)
    chosen = targets(layers, config.target_modules)
    model.base_model.requires_grad_(False)
    if (head := model.get_output_embeddings()) is not None:
        head.requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoRALinear(layers[name], config, random))


def merged(
    parameters: Iterable[tuple[str, Tensor]], config: LoRAConfig, adapters: dict[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The named parameters of a model as one without adapters has them, one at a time.

    A sum is made in float32 and rounded to the weight's dtype. `adapters` takes the factors A and B, copied, by name.
    """
    factors: dict[str, Tensor] = {} if adapters is None else adapters
    for name, tensor in parameters:
        layer, _, leaf = name.rpartition(".")
        if leaf in (A, B):
            factors[name] = tensor.clone()  # ZeRO 3 lets go of it
        elif leaf == "weight" and f"{layer}.{B}" in factors:
            a, b = (factors[f"{layer}.{factor}"].float() for factor in (A, B))
            yield name, torch.addmm(tensor.float(), b, a, alpha=scale_of(config)).to(tensor.dtype)
        else:
            yield name, tensor


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """The model is its base while the context lasts."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    for layer in layers:
        layer.is_off = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_off = False


def write_adapter(folder: Path, adapters: dict[str, Tensor], config: LoRAConfig, base: str) -> None:
    """A folder that PEFT reads; `adapters` by Hugging Face name, `base` the model they belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": ALL if ALL in config.target_modules else list(config.target_modules),
    }
    (folder / "adapter_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    named = {
        f"base_model.model.{name}.weight": tensor.cpu().contiguous() for name, tensor in adapters.items()
    }
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
