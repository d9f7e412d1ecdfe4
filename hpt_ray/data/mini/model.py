"""The model sizes of the small task, as Qwen2 or Llama configurations, and their initialisation.

A configuration comes out that `transformers` and vLLM both know. Heads have 32 dimensions because
vLLM's CPU attention takes no less; the embedding has exactly as many rows as the tokenizer has
entries, so no row is sampled that stands for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from hpt_ray.data.mini.sizes import SIZES, Architecture
from hpt_ray.data.mini.tokenizer import VOCAB_SIZE, VOCABULARY

HEAD_SIZE = 32
MAX_POSITIONS = 128


def model_config(size: str, architecture: Architecture = "qwen2") -> PreTrainedConfig:
    """The configuration of one of `SIZES`: tied embeddings, RoPE base 10 000, float32."""
    shape = SIZES[size]
    common: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": VOCABULARY.index("<pad>"),
        "bos_token_id": VOCABULARY.index("<bos>"),
        "eos_token_id": VOCABULARY.index("<eos>"),
        "dtype": "float32",
    }
    if architecture == "qwen2":
        return Qwen2Config(**common)
    return LlamaConfig(**common, head_dim=HEAD_SIZE)


def create_model(size: str, seed: int, architecture: Architecture = "qwen2") -> PreTrainedModel:
    """A model of one of `SIZES` with the weights of `init_weights`, in float32."""
    model = AutoModelForCausalLM.from_config(model_config(size, architecture), dtype=torch.float32)
    init_weights(model, seed)
    return model


@torch.no_grad()
def init_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw all weights anew, in place; the same seed gives the same weights.

    Embedding: std 1/√hidden. Linear: std 1/√fan_in, halved where a block writes to the residual
    stream (attention output, MLP down). Biases 0, norms 1. A model this small learns much faster
    from these than from the usual 0.02 everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():  # a tied output head is listed once, as the embedding
        if weight.dim() == 1:
            weight.fill_(1.0 if "norm" in name else 0.0)
            continue
        std = weight.shape[1] ** -0.5  # fan_in; of the embedding: hidden
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= 2
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)
