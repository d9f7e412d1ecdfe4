"""The size of a model: from its config.json, or from a small table of named models.

In: the `model` section. Out: a `ModelShape`, the few numbers that memory and time follow from, or None where
nothing on this machine says what the model looks like. Parameters are counted on a model without memory
(PyTorch's `meta` device), so the count is exact for every architecture. No weights are read, no network is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)

from hpt_ray.config.schema import ModelConfig
from hpt_ray.config.training import LoRAConfig
from hpt_ray.data import mini
from hpt_ray.data.mini.base import parse_name
from hpt_ray.data.mini.model import model_config
from hpt_ray.learner.architectures import rule_of
from hpt_ray.learner.batch_invariant import check_architecture
from hpt_ray.learner.lora import linear_layers, targets
from hpt_ray.learner.model import load_model_config, override, positions_of


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Numbers of a decoder. Example: Llama-3.1-8B has `key_width` 8 heads · 128 = 1024."""

    num_parameters: int
    num_embedding: int  # parameters of an input embedding that no product uses: 0 where it is the head too
    num_layers: int
    width: int  # of the hidden states
    mlp_width: int
    head_size: int
    query_width: int  # heads · head size
    key_width: int  # heads of keys (and values) · head size
    vocabulary: int
    positions: int | None  # the longest sequence, with RoPE as it is scaled; None: the model sets no limit
    linear_layers: Mapping[str, int]  # those that may have an adapter: name → inputs + outputs
    num_idle: int = 0  # parameters of experts that a token does not go to

    @property
    def kv_numbers(self) -> int:
        """Numbers that the cache keeps of one token."""
        return 2 * self.num_layers * self.key_width

    def adapter_numbers(self, lora: LoRAConfig) -> int:
        """Parameters of the adapters. Raises `UserError` for a target that the model does not have."""
        if not lora.rank:
            return 0
        return lora.rank * sum(
            self.linear_layers[name] for name in targets(self.linear_layers, lora.target_modules)
        )


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
    "max_position_embeddings",
)
_EXPERTS = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
_A3B = partial(Qwen3MoeConfig, **dict[str, Any](_EXPERTS))
# Models that a plan can be made for before they are here, by the last part of their Hub name.
NAMED: dict[str, Callable[[], PreTrainedConfig]] = {
    name: partial(kind, **dict[str, Any](zip(_SIZES, sizes, strict=True)))
    for name, kind, *sizes in (
        ("Qwen2.5-Math-7B", Qwen2Config, 152064, 3584, 18944, 28, 28, 4, False, 4096),
        ("Qwen2.5-Math-1.5B", Qwen2Config, 151936, 1536, 8960, 28, 12, 2, True, 4096),
        ("Qwen2.5-32B", Qwen2Config, 152064, 5120, 27648, 64, 40, 8, False, 131072),
        ("Qwen2.5-14B", Qwen2Config, 152064, 5120, 13824, 48, 40, 8, False, 131072),
        ("Qwen2.5-0.5B", Qwen2Config, 151936, 896, 4864, 24, 14, 2, True, 32768),
        ("Llama-3.1-8B", LlamaConfig, 128256, 4096, 14336, 32, 32, 8, False, 131072),
        ("Qwen3-30B-A3B", _A3B, 151936, 2048, 6144, 48, 32, 4, False, 40960),
    )
}


def find_shape(model: ModelConfig, path: str) -> ModelShape | None:
    """The shape of the model that `find_config` finds."""
    config = find_config(model, path)
    return None if config is None else shape_of(config, trust_remote_code=model.trust_remote_code)


def find_config(model: ModelConfig, path: str) -> PreTrainedConfig | None:
    """That of the model at `path` (a folder, a `mini:` or a Hub name), with `model.config_overrides`.

    None where there is no folder of it here and its name is not in `NAMED`. Raises `UserError` for a
    config.json that cannot be used, and for an override of a key that it does not have.
    """
    if mini.is_mini(path):
        named = parse_name(path)
        config = model_config(named.size, named.architecture)
        override(config, model.config_overrides)
    elif (folder := local_folder(path)) is not None and (folder / "config.json").is_file():
        config = load_model_config(model, str(folder))
    elif (name := Path(path).name) in NAMED:
        config = NAMED[name]()
        override(config, model.config_overrides)
    else:
        return None
    rule_of(config).check(config)
    if model.batch_invariant:
        check_architecture(config)
    return config


def local_folder(path: str) -> Path | None:
    """The folder of a model that is on this machine, also in the Hub's cache. Uses no network."""
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):  # no Hub name at all, or not in the cache
        return None


def shape_of(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> ModelShape:
    """The shape that a configuration of transformers describes; made once for equal configurations."""
    key = f"{type(config)} {config.to_json_string(use_diff=False)}"
    if key not in _SHAPES:
        _SHAPES[key] = _measure(config, trust_remote_code)
    return _SHAPES[key]


_SHAPES: dict[str, ModelShape] = {}


def without_memory(config: PreTrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model that a configuration describes, without numbers in it."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _measure(config: PreTrainedConfig, trust_remote_code: bool) -> ModelShape:
    model: Any = without_memory(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    num_experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
    chosen = getattr(text, "num_experts_per_tok", None) or num_experts
    return ModelShape(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_embedding=0 if tied else embedding.weight.numel(),
        num_layers=text.num_hidden_layers,
        width=text.hidden_size,
        mlp_width=getattr(text, "intermediate_size", None)
        or getattr(text, "n_inner", None)
        or 4 * text.hidden_size,
        head_size=head_size,
        query_width=heads * head_size,
        key_width=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=text.vocab_size,
        positions=positions_of(text),
        linear_layers={
            name: layer.in_features + layer.out_features for name, layer in linear_layers(model).items()
        },
        num_idle=experts * (num_experts - chosen) // num_experts,
    )
