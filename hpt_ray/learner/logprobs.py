"""log π and entropy of the response tokens of packed samples, without ever holding the logits of all of them.

    TokenScorer            a causal language model: packed samples → log π [R] and entropy [R]
    LogProbHead            its output layer: hidden states and tokens → the same
    logprob_and_entropy    the numbers: hidden states [R, H], weight [V, H], tokens [R] → the same

The output layer runs on response positions only. The logits [R, V] are made tile by tile, by samples and by
vocabulary. Forward merges the sums of the tiles of a sample (online log-sum-exp); backward makes every tile again
and adds its part to the gradients. Beyond hidden states, weight and their gradients this takes two tiles (three
with soft-capped logits and a gradient of the entropy), one slice of the weight and O(R · H) numbers, each in
float32. An output layer that is no plain linear one is called on chunks of samples, each of which is run again in
the backward pass where there is more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hpt_ray.learner.architectures import rule_of
from hpt_ray.learner.scorer_input import ScorerInput

# Logits of one tile. On a CPU it should stay in the cache (4 MiB in float32); a GPU has to be kept busy.
TILE_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 23}
CHUNK_LOGITS = 1 << 26  # logits of one chunk of any other layer than a linear one: 256 MiB in float32


def logprob_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    softcap: float | None = None,
    entropy_grad: bool = False,
    tile_logits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax(z)[targets] [R] and the entropy of softmax(z) [R].

    z = cap(hidden · weightᵀ + bias) / temperature, where cap(x) = softcap · tanh(x / softcap), or x.

    `hidden` [R, H], `weight` [V, H] and `bias` [V] of one dtype, `targets` [R] int64, `temperature` [R].
    Logits, sums and results are float32, or float64 where `hidden` is; gradients are summed in that dtype
    and returned in that of their tensor (a parameter's `grad_dtype`). Without `entropy_grad` the entropy
    is a constant to autograd.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    temperature = None if temperature is None else temperature.to(dtype)
    layer = _Layer(
        dtype=dtype,
        softcap=softcap,
        tile_logits=tile_logits or TILE_LOGITS["cuda" if hidden.is_cuda else "cpu"],
    )
    return _LogProb.apply(hidden, weight, bias, targets, temperature, layer, entropy_grad)


class LogProbHead(torch.nn.Module):
    """An output layer seen as: hidden states and tokens → (log π, entropy) of the tokens.

    It shares the layer's parameters. Call it as a module: under ZeRO 3 a parameter is whole only while a
    module that owns it runs, forward or backward, which DeepSpeed's hooks see to.
    """

    def __init__(self, layer: torch.nn.Linear, softcap: float | None = None):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.softcap = softcap

    def forward(
        self, hidden: Tensor, targets: Tensor, temperature: Tensor, entropy_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """As `logprob_and_entropy`."""
        return logprob_and_entropy(
            hidden,
            self.weight,
            targets,
            bias=self.bias,
            temperature=temperature,
            softcap=self.softcap,
            entropy_grad=entropy_grad,
        )


@dataclass(frozen=True)
class _Layer:
    """What makes logits of products, and in what portions."""

    dtype: torch.dtype
    softcap: float | None
    tile_logits: int

    def cuts(self, hidden: Tensor, weight: Tensor) -> tuple[list[slice], list[slice]]:
        """Samples and vocabulary in slices. No tile and no slice of the weight has more than `tile_logits`
        numbers; tiles are as square as that allows, which takes the fewest reads per product.
        """
        (num_samples, size), vocabulary = hidden.shape, len(weight)
        samples = max(1, min(num_samples, max(isqrt(self.tile_logits), self.tile_logits // vocabulary)))
        entries = max(1, min(vocabulary, self.tile_logits // max(samples, size)))
        return list(_slices(num_samples, samples)), list(_slices(vocabulary, entries))

    def logits(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor | None
    ) -> Tensor:
        """z [samples, entries], a tensor of its own."""
        z = _product(hidden, weight.T, self.dtype)
        if bias is not None:
            z += bias
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        if temperature is not None:
            z /= temperature[:, None]
        return z

    def slope(self, z: Tensor, temperature: Tensor | None) -> Tensor | None:
        """∂z/∂(hidden · weightᵀ) at z: a tensor that broadcasts to z; None where it is 1."""
        slope = None if temperature is None else 1 / temperature[:, None]
        if self.softcap is None:
            return slope
        capped = z / self.softcap if temperature is None else z * (temperature[:, None] / self.softcap)
        bend = capped.square_().neg_().add_(1)  # 1 − tanh²
        return bend if slope is None else bend.mul_(slope)


class _Sums(NamedTuple):
    """Of each sample of logits z [samples]: m = max z, Σ exp(z − m), Σ exp(z − m) (z − m), and the target's z."""

    top: Tensor
    total: Tensor
    moment: Tensor
    target: Tensor

    @classmethod
    def of(cls, z: Tensor, targets: Tensor, entries: slice) -> _Sums:
        """Uses `z` up."""
        index, is_here = _within(targets, entries)
        target = z.gather(1, index).squeeze(1) * is_here
        top = z.amax(-1)
        z -= top[:, None]
        p = z.exp()
        return cls(top, p.sum(-1), p.mul_(z).sum(-1), target)

    def merge(self, other: _Sums) -> _Sums:
        """The sums over both parts of the vocabulary."""
        top = torch.maximum(self.top, other.top)
        moved = [part._move(top) for part in (self, other)]
        return _Sums(top, *(a + b for a, b in zip(*moved, strict=True)))

    def _move(self, top: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums with respect to another m."""
        by = self.top - top
        factor = by.exp()
        return self.total * factor, (self.moment + by * self.total) * factor, self.target


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor | None,
        layer: _Layer,
        entropy_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        by_sample, by_entry = layer.cuts(hidden, weight)
        parts = []
        for samples in by_sample:
            tiles = (
                _Sums.of(
                    layer.logits(
                        hidden[samples], weight[entries], _at(bias, entries), _at(temperature, samples)
                    ),
                    targets[samples],
                    entries,
                )
                for entries in by_entry
            )
            parts.append(reduce(_Sums.merge, tiles))
        sums = _Sums(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        log_total = sums.total.log()
        log_z, entropy = sums.top + log_total, log_total - sums.moment / sums.total
        ctx.save_for_backward(hidden, weight, bias, targets, temperature, log_z, entropy)
        ctx.layer, ctx.entropy_grad = layer, entropy_grad
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return sums.target - log_z, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprob: Tensor, grad_entropy: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, temperature, log_z, entropy = ctx.saved_tensors
        layer: _Layer = ctx.layer
        by_sample, by_entry = layer.cuts(hidden, weight)
        grad_hidden = torch.zeros_like(hidden, dtype=layer.dtype)
        trains = ctx.needs_input_grad[1]  # not where adapters train in its place
        grad_weight = torch.empty_like(weight, dtype=_grad_dtype(weight)) if trains else None
        grad_bias = torch.empty_like(bias, dtype=_grad_dtype(bias)) if trains and bias is not None else None
        for entries in by_entry:
            slice_grad = torch.zeros_like(weight[entries], dtype=layer.dtype) if trains else None
            slice_bias_grad = torch.zeros_like(weight[entries, 0], dtype=layer.dtype)
            for samples in by_sample:
                z = layer.logits(
                    hidden[samples], weight[entries], _at(bias, entries), _at(temperature, samples)
                )
                slope = layer.slope(z, _at(temperature, samples))
                z -= log_z[samples, None]
                if ctx.entropy_grad:
                    grad = _entropy_part(z, grad_logprob[samples], grad_entropy[samples], entropy[samples])
                else:
                    grad = z.exp_().mul_(-grad_logprob[samples, None])
                index, is_here = _within(targets[samples], entries)
                grad.scatter_add_(1, index, (grad_logprob[samples] * is_here)[:, None])
                if slope is not None:
                    grad *= slope
                if bias is not None:
                    slice_bias_grad += grad.sum(0)
                grad = grad.to(hidden.dtype)
                grad_hidden[samples] += _product(grad, weight[entries], layer.dtype)
                if slice_grad is not None:
                    slice_grad += _product(grad.T, hidden[samples], layer.dtype)
            if grad_weight is not None and slice_grad is not None:
                grad_weight[entries] = slice_grad
            if grad_bias is not None:
                grad_bias[entries] = slice_bias_grad
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None, None


def _entropy_part(log_p: Tensor, grad_logprob: Tensor, grad_entropy: Tensor, entropy: Tensor) -> Tensor:
    """−p (g + h (log p + H)): the gradient by z but for the target's own g. Uses `log_p` up."""
    p = log_p.exp()
    log_p += entropy[:, None]
    log_p *= grad_entropy[:, None]
    log_p += grad_logprob[:, None]
    return log_p.mul_(p).neg_()


def _within(targets: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
    """Column [samples, 1] of each target in a slice of the vocabulary, and whether it is there at all."""
    column = targets - entries.start
    index = column.clamp(0, entries.stop - entries.start - 1)
    return index[:, None], index == column


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, summed and returned in `dtype`."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def _grad_dtype(tensor: Tensor) -> torch.dtype:
    """What autograd keeps the gradient in: float32 also for a bfloat16 parameter, where it is told to."""
    return (tensor.grad_dtype or tensor.dtype) if tensor.is_leaf else tensor.dtype


def _slices(size: int, step: int) -> Iterator[slice]:
    """At least one, if an empty one."""
    for begin in range(0, max(size, 1), step):
        yield slice(begin, min(begin + step, size))


def _at(tensor: Tensor | None, where: slice) -> Tensor | None:
    return None if tensor is None else tensor[where]


def score(
    scorer: Callable[[ScorerInput], tuple[Tensor, Tensor]], samples: ScorerInput
) -> tuple[np.ndarray, np.ndarray]:
    """log π and entropy [R] float32 of a micro-batch's response tokens by a `TokenScorer`, forward only."""
    with torch.no_grad():
        found = scorer(samples)
    logprob, entropy = (numbers.float().cpu().numpy() for numbers in found)
    return logprob, entropy


class TokenScorer(torch.nn.Module):
    """A causal language model seen as: packed samples → (log π, entropy) of their response tokens."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        rule = rule_of(model.config)
        rule.check(model.config)
        self.model = model
        # cap(s · z, c) / T = cap(z, c / s) / (T / s): logits that the model scales take no products of their own.
        self._scale, softcap = rule.scale_of(model.config), rule.softcap_of(model.config)
        self._softcap = None if softcap is None else softcap / self._scale
        layer = model.get_output_embeddings()
        # A subclass of the linear layer may compute anything.
        self.head = LogProbHead(layer, self._softcap) if type(layer) is torch.nn.Linear else None

    def forward(self, samples: ScorerInput, entropy_grad: bool = False) -> tuple[Tensor, Tensor]:
        """log π_θ [R] and entropy of π_θ [R] of the whole micro-batch, float32; the entropy is detached unless
        asked for.
        """
        head = self._score_in_chunks if self.head is None else self.head
        hidden = samples.hidden_before(self.model)
        temperature = samples.temperature / self._scale
        logprob, entropy = head(hidden, samples.targets, temperature, entropy_grad)
        return samples.of_all(logprob.float()), samples.of_all(entropy.float())

    def _score_in_chunks(
        self, hidden: Tensor, targets: Tensor, temperature: Tensor, entropy_grad: bool
    ) -> tuple[Tensor, Tensor]:
        size = max(1, CHUNK_LOGITS // self.model.config.get_text_config().vocab_size)
        chunks = list(zip(hidden.split(size), targets.split(size), temperature.split(size), strict=True))
        recompute = len(chunks) > 1 and torch.is_grad_enabled()
        parts = [
            checkpoint(self._score, *chunk, entropy_grad, use_reentrant=False)
            if recompute
            else self._score(*chunk, entropy_grad)
            for chunk in chunks
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _score(
        self, hidden: Tensor, targets: Tensor, temperature: Tensor, entropy_grad: bool
    ) -> tuple[Tensor, Tensor]:
        logits = self.model.get_output_embeddings()(hidden).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        logits = logits / temperature[:, None]
        log_p = logits.log_softmax(-1)  # as vLLM's sampler has it
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            base = log_p if entropy_grad else log_p.detach()
            entropy = -(base.exp() * base).sum(-1)
        return log_p.gather(-1, targets[:, None]).squeeze(-1), entropy
