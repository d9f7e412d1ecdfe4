"""vLLM's side of `model.batch_invariant`: the learner's own modules over vLLM's paged cache.

A model class and an attention backend, both through what vLLM offers for that: its model registry, and the backend
that an attention layer is given. Scheduling, cache, prefix sharing and sampling stay vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
)

from hpt_ray.learner.batch_invariant import (
    TILE,
    causal_attention,
    check_architecture,
    make_batch_invariant,
    padded,
    tiled_linear,
)

ATTENTION = "batch_invariant_paged"  # as transformers knows the attention


class PagedAttention(CPUAttentionBackendImpl):
    """The learner's attention, with keys and values [block, kv_head, place, k and v] from the cache."""

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        size = kv_cache.shape[2]
        slots = slot_mapping[: len(key)]
        kv_cache[slots // size, :, slots % size] = torch.cat([key, value], -1)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """`query` [tokens, heads, d] of all sequences end to end; their keys are in the cache."""
        output.zero_()
        if attn_metadata is None:  # vLLM warms up
            return output
        starts = attn_metadata.query_start_loc.long()
        num_queries, num_keys = starts.diff(), attn_metadata.seq_lens.long()
        # Decoding apart from prompts, and of those the ones of about one length together.
        kinds = torch.where(num_queries == 1, 0, (num_queries + TILE - 1) // TILE)
        for kind in kinds.unique():
            chosen = torch.nonzero(kinds == kind).squeeze(1)
            count, seen = num_queries[chosen], num_keys[chosen]
            offsets = torch.arange(int(count.max()))
            places = starts[chosen][:, None] + offsets.minimum(count[:, None] - 1)
            at = torch.arange(int(seen.max())).minimum(seen[:, None] - 1)
            size = kv_cache.shape[2]
            pages = attn_metadata.block_table[chosen].long().gather(1, at // size)
            keys, values = kv_cache[pages, :, at % size].chunk(2, dim=-1)  # [sequences, keys, kv_heads, d]
            out = causal_attention(query[places], keys, values, seen - count, self.scale)
            is_real = offsets < count[:, None]
            output[places[is_real]] = out[is_real]
        return output


class PagedBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return PagedAttention


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layers: torch.nn.ModuleList,
    num_tokens: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, T, d], of which the first `num_tokens` are real."""
    q, k, v = (x[0, :, :num_tokens].transpose(0, 1).flatten(1) for x in (query, key, value))
    out = padded(layers[module.layer_idx](q, k, v), TILE)
    return out.view(1, len(out), query.shape[1], -1), None


class BatchInvariantForCausalLM(torch.nn.Module):
    """The model of transformers that the learner trains, in vLLM."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        check_architecture(config)
        whole: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=ATTENTION
        )
        self.model: Any = make_batch_invariant(whole.model)
        # A tied output layer has no weight that a reload could leave behind.
        self.lm_head = None if config.tie_word_embeddings else whole.lm_head
        attentions: list[Any] = [module for module in self.model.modules() if hasattr(module, "layer_idx")]
        self.attention = torch.nn.ModuleList(
            Attention(
                config.num_attention_heads,
                module.head_dim,
                module.scaling,
                num_kv_heads=config.num_key_value_heads,
                cache_config=vllm_config.cache_config,
                prefix=f"layers.{module.layer_idx}.attention",
                attn_backend=PagedBackend,
            )
            for module in attentions
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
    ) -> Tensor:
        """The last hidden states [tokens, H]."""
        hidden = self.model(
            input_ids=padded(input_ids, TILE)[None],
            position_ids=padded(positions, TILE)[None],
            use_cache=False,
            layers=self.attention,
            num_tokens=len(input_ids),
        ).last_hidden_state[0]
        return hidden[: len(input_ids)]

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        head = self.model.get_input_embeddings() if self.lm_head is None else self.lm_head
        return tiled_linear(hidden_states, head.weight)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        absent = ["lm_head."] if self.lm_head is None else []
        return AutoWeightsLoader(self, ignore_unexpected_prefixes=absent).load_weights(weights)


def register(name: str) -> None:
    """Make the model class known to vLLM under this name, and the attention to transformers."""
    AttentionInterface.register(ATTENTION, paged_attention)
    ModelRegistry.register_model(name, BatchInvariantForCausalLM)
