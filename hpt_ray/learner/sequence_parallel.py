"""Sequence parallelism (Ulysses, arXiv 2309.14509): ranks that share the tokens of each micro-batch.

Each of s ranks runs the model on its slice of the T packed tokens. All layers but attention work token by token;
for attention an all-to-all gives each rank all tokens and its share of the heads, and another gives it its slice back:

    [T/s, heads, d]  ──▶  [T, heads/s, d]  ── attention ──▶  [T, heads/s, d]  ──▶  [T/s, heads, d]

Then each rank knows log π of the whole micro-batch and computes the same loss, of which it differentiates its own
slice alone. So the sum of the ranks' gradients counts each token once, as it does where nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as collectives
from transformers import PreTrainedModel

from hpt_ray.cluster.meeting import prove_membership
from hpt_ray.errors import UserError


@dataclass(frozen=True)
class SequenceRanks:
    """The ranks that share a micro-batch, seen from the one at place `rank`; by default one alone."""

    size: int = 1
    rank: int = 0
    group: Any = None  # ProcessGroup

    def padding(self, num_tokens: int) -> int:
        """Tokens to be added, so that all slices are of one size."""
        return -num_tokens % self.size

    def slice_of(self, num_tokens: int) -> slice:
        """This rank's of so many tokens and their padding."""
        size = (num_tokens + self.padding(num_tokens)) // self.size
        return slice(self.rank * size, (self.rank + 1) * size)

    def to_heads(self, x: torch.Tensor) -> torch.Tensor:
        """[T/s, heads, d] → [T, heads/s, d]; heads that are fewer than ranks are repeated."""
        copies = self.size // gcd(self.size, x.shape[1])
        x = x[:, :, None].expand(-1, -1, copies, -1).flatten(1, 2)
        return self._exchange(x.unflatten(1, (self.size, -1)).transpose(0, 1)).flatten(0, 1)

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads/s, d] → [T/s, heads, d]."""
        return self._exchange(x.unflatten(0, (self.size, -1))).transpose(0, 1).flatten(1, 2)

    def _exchange(self, x: torch.Tensor) -> torch.Tensor:
        """Row i to rank i. Collective, in the backward pass too."""
        return collectives.wait_tensor(collectives.all_to_all_single(x.contiguous(), None, None, self.group))

    def whole(self, mine: torch.Tensor, place: slice, size: int) -> torch.Tensor:
        """[size] of all ranks' numbers, of which `mine` belong to `place`; the others' are constants. Collective."""
        if self.size == 1:
            return mine
        whole = mine.new_zeros(size)
        whole[place] = mine.detach()
        dist.all_reduce(whole, group=self.group)  # each number is of one rank: nothing is rounded
        return torch.cat([whole[: place.start], mine, whole[place.stop :]])


ALONE = SequenceRanks()


def make_sequence_ranks(size: int, *, secret: bytes, timeout_s: float) -> SequenceRanks:
    """Ranks of the default process group, each `size` in a row together. Collective over all ranks."""
    if size == 1:
        return ALONE
    group, _ = dist.new_subgroups(size, timeout=timedelta(seconds=timeout_s))
    rank = dist.get_rank(group)
    if dist.get_backend(group) == "gloo":
        exchange = partial(dist.all_to_all_single, group=group)
        prove_membership(exchange, secret, rank=rank, world_size=size)
    return SequenceRanks(size, rank, group)


def check_model(model: PreTrainedModel, size: int) -> None:
    """Raises `UserError` where `size` ranks cannot share the tokens of the model's samples."""
    if size == 1:
        return
    heads = model.config.get_text_config().num_attention_heads
    if heads % size:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise UserError(
            f"learner.sequence_parallel is {size}, but {model.config.model_type} has {heads} heads of attention, which "
            f"the ranks share evenly: use one of {fitting}."
        )
    if why := next(_mixing(model), None):
        raise UserError(
            f"learner.sequence_parallel gives each rank a slice of the tokens, but in {model.config.model_type} {why}: "
            "set it to 1, or use a model where tokens meet in attention alone."
        )


def _mixing(model: PreTrainedModel) -> Iterator[str]:
    """What makes a token's numbers depend on others outside of attention `segments`, as far as one can tell."""
    config = model.config.get_text_config()
    if model._is_stateful:
        yield "layers carry a state from token to token"
    others = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}
    if others:
        yield f"there are layers of {', '.join(sorted(others))}"
    if any(isinstance(module, torch.nn.modules.conv._ConvNd) for module in model.modules()):
        yield "there are convolutions"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # of each kind of layer
    if any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds):
        yield "RoPE follows the longest sequence that a rank sees"
