"""The policy's forward pass such that a token's numbers do not depend on what else is computed with it.

A matrix product sums in an order that depends on how many rows it has, and the last numbers of a tensor go through
other instructions than the rest. So the sampler, one token at a time, and the learner, thousands at once, round
differently. Here every product has one shape: rows come in tiles, padded to full ones, and attention goes through
the keys in blocks from a sequence's first on. What a position sees and where it stands in its sequence decides
every bit of its result. Learner and sampler (`hpt_ray.rollout.batch_invariant`) run the same modules of transformers
with these two parts, so their log-probs are equal bit for bit and π_θ / π_old is 1 before an update.

It holds in float32 on CPUs of one kind with one thread a process, which is where it was checked. Backward passes are
the ordinary ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpt_ray.errors import UserError

NAME = "batch_invariant"
TILE = 32  # rows of a product, and keys of a block
QUERIES = 8  # rows of a product in attention, where decoding has one query for each head
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # of which tests show it
ROPE = ("default", "linear", "llama3", "yarn")  # whose angles depend on a token's position alone


def check_architecture(config: Any) -> None:
    """Raises `UserError` where a model of this configuration (`PreTrainedConfig`) is not covered."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if config.model_type not in ARCHITECTURES:
        why = f"`model_type` is {config.model_type}"
    elif rope not in ROPE:
        why = f"`rope_type` is {rope}"
    elif windows:
        why = f"it has layers of {', '.join(sorted(windows))}"
    else:
        return
    raise UserError(
        f"`model.batch_invariant` covers {', '.join(ARCHITECTURES)} with full attention and RoPE of "
        f"{', '.join(ROPE)}, but of this model {why}: set it to false."
    )


def make_batch_invariant(model: Any) -> Any:
    """The model itself, whose linear layers compute tile by tile from now on."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = TiledLinear  # keeps the parameters, and what is tied to them
    return model


class TiledLinear(torch.nn.Linear):
    """A linear layer whose rows do not depend on each other."""

    def forward(self, input: Tensor) -> Tensor:
        return tiled_linear(input, self.weight, self.bias)


def tiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias: `x` [..., K], `weight` [N, K], `bias` [N]. Returns [..., N]."""
    out = _TiledProduct.apply(x.reshape(-1, x.shape[-1]), weight).unflatten(0, x.shape[:-1])
    return out if bias is None else out + bias


class _TiledProduct(torch.autograd.Function):
    """x [R, K] · weight [N, K]ᵀ in tiles of rows; its gradients are products of any shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        tiles = padded(x, TILE).contiguous().unflatten(0, (-1, TILE))
        return torch.bmm(tiles, weight.T.expand(len(tiles), -1, -1)).flatten(0, 1)[: len(x)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x


def padded(x: Tensor, multiple: int, dim: int = 0) -> Tensor:
    """`x` with zeros at the end of a dimension, up to a multiple."""
    missing = -x.shape[dim] % multiple
    return F.pad(x, (0, 0) * (x.dim() - dim - 1) + (0, missing)) if missing else x


def causal_attention(query: Tensor, key: Tensor, value: Tensor, first: Tensor, scaling: float) -> Tensor:
    """softmax(scaling · q · kᵀ) v where query i of sequence s sees its keys 0 to `first[s]` + i.

    `query` [S, Q, heads, d], `key` and `value` [S, L, kv_heads, d], finite also where no query looks; `first` [S].
    Returns [S, Q, heads, d].
    """
    num_kv_heads = key.shape[2]
    groups = query.shape[2] // num_kv_heads
    # All products of a sequence's key and value head go together: [S · kv_heads, …].
    q = query.unflatten(2, (num_kv_heads, groups)).transpose(1, 2).flatten(0, 1)  # [.., Q, groups, d]
    k, v = (padded(x.transpose(1, 2).flatten(0, 1), TILE, dim=1) for x in (key, value))
    # The last key that each query sees: [.., Q, groups].
    last = first[:, None] + torch.arange(query.shape[1], device=first.device)
    last = last.repeat_interleave(num_kv_heads, 0)[..., None].expand(-1, -1, groups)
    parts = []
    for rows, seen in zip(q.split(TILE, 1), last.split(TILE, 1), strict=True):
        num_keys = (int(seen.max()) // TILE + 1) * TILE
        keys, values = (x[:, :num_keys].split(TILE, 1) for x in (k, v))
        parts.append(_attend(rows.flatten(1, 2), keys, values, seen.flatten(1, 2), scaling))
    out = torch.cat(parts, 1).unflatten(1, (-1, groups)).unflatten(0, (-1, num_kv_heads))
    return out.transpose(1, 2).flatten(2, 3)


def _attend(
    q: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], last: Tensor, scaling: float
) -> Tensor:
    """The same of rows `q` [n, R, d] with the key `last` [n, R] that each sees last, block by block [n, TILE, d].

    A block that a row does not see adds zeros, which change no bit.
    """
    num_rows = q.shape[1]
    tiles = padded(q, QUERIES, dim=1).unflatten(1, (-1, QUERIES))  # [n, tiles, QUERIES, d]
    last = padded(last[..., None], QUERIES, dim=1).unflatten(1, (-1, QUERIES))
    scores = []
    for i, block in enumerate(keys):
        # One layout for one tile and for many, which are given copies.
        score = torch.matmul(tiles, block.mT.contiguous()[:, None]) * scaling
        hidden = torch.arange(i * TILE, (i + 1) * TILE, device=last.device) > last
        scores.append(score.masked_fill(hidden, -torch.inf))
    with torch.no_grad():  # any m gives the same quotient
        top = torch.stack([score.amax(-1, keepdim=True) for score in scores]).amax(0)
    total, out = torch.zeros_like(top), torch.zeros_like(tiles)
    for score, block in zip(scores, values, strict=True):
        weights = (score - top).exp()
        total = total + weights.sum(-1, keepdim=True)
        out = out + torch.matmul(weights, block[:, None])
    return (out / total).flatten(1, 2)[:, :num_rows]
