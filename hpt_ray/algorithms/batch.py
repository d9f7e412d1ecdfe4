"""The arrays the estimator works on: samples in, weights out.

`TokenBatch` is what a forward pass gives (torch, flat response tokens). `SampleWeights` is what the
driver knows about an optimizer step (advantages and scales). `SampleView` and `TokenView` are the
same data made ready for the families: numpy float64 per sample on the driver's side, detached torch
per token on the learner's side. `Stats` say how a forward pass went: adding the pairs of micro-batches and ranks,
then dividing, gives the mean over all their tokens. No algorithm is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Mask = TypeVar("Mask", np.ndarray, Tensor)
Stats = dict[str, tuple[Tensor, Tensor]]  # name → (sum, count), float64 scalars on the device


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Nominal sizes of one optimizer step: what was asked for, not what came back."""

    num_prompts: int  # N
    num_rollouts: int  # n, sampled per prompt
    max_response_tokens: int  # C, unless the algorithm sets `length_constant`

    @classmethod
    def of(cls, sample_lengths: Array, group_ids: Array, is_demo: Array) -> BatchShape:
        """The sizes if these samples are the whole step: N groups, n of the largest, C the longest sample."""
        _, sizes = np.unique(group_ids[~is_demo.astype(bool)], return_counts=True)
        return cls(
            num_prompts=max(len(np.unique(group_ids)), 1),
            num_rollouts=int(sizes.max(initial=1)),
            max_response_tokens=int(sample_lengths.max(initial=1)),
        )


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Samples of responses laid end to end: R response tokens in all.

    `logprobs`       [R] log π_θ(token), with gradient
    `old_logprobs`   [R] log π_old(token) of the sampler; NaN on demonstrations, never read there
    `sample_lengths` [samples] response tokens of each sample, at least 1
    `group_ids`      [samples] any integers; equal for samples of the same prompt
    `rewards`        [samples] R(τ)
    `is_demo`        [samples] bool
    `is_rehearsal`   [samples] bool, of those of `is_demo` that are rows of rehearsal; None: none is
    `entropy`        [R] entropy of π_θ at each token, with gradient where there is an entropy bonus
    `values`         [R] V(prefix of the token) of the critic
    `ref_logprobs`   [R] log of the token's probability under the frozen reference policy (or teacher)
    `prompt_lengths` [samples] used by the official mode's virtual packing only; None: no prompts

    Example: two rollouts of one prompt, of 2 tokens and 1 token: `TokenBatch(logprobs=[-.1, -.2, -.3],
    old_logprobs=[-.1, -.2, -.3], sample_lengths=[2, 1], group_ids=[0, 0], rewards=[1, 0], is_demo=[False, False])`.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    sample_lengths: Tensor
    group_ids: Tensor
    rewards: Tensor
    is_demo: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None
    ref_logprobs: Tensor | None = None
    prompt_lengths: Tensor | None = None
    is_rehearsal: Tensor | None = None

    def batch_shape(self) -> BatchShape:
        """The sizes if these samples are the whole step."""
        return BatchShape.of(*map(to_numpy, (self.sample_lengths, self.group_ids, self.is_demo)))


@dataclass(frozen=True, slots=True)
class SampleWeights:
    """What the rewards of an optimizer step come to, for K terms. The learner multiplies and adds.

    `advantages` [K, samples], or [K, R] where a term has one per token; 0 where a term does not apply
    `scales`     [K, samples] coefficient · gate weight / Z; 0 where a term does not apply
    `entropy_scales`, `kl_scales` [samples] the same for the entropy bonus and the KL loss
    """

    advantages: Array | Tensor
    scales: Array | Tensor
    entropy_scales: Array | Tensor
    kl_scales: Array | Tensor

    def token_advantages(self, sample_lengths: Array) -> Array:
        """[K, R]: the form a micro-batch carries."""
        advantages = to_numpy(self.advantages)
        if advantages.shape[1] == sample_lengths.sum():
            return advantages
        return np.repeat(advantages, sample_lengths, axis=1)

    def of(self, rows: Array | Tensor) -> SampleWeights:
        """Those of some samples, by their numbers; for advantages per sample."""
        rows = to_numpy(rows)
        return SampleWeights(
            to_numpy(self.advantages)[:, rows],
            to_numpy(self.scales)[:, rows],
            to_numpy(self.entropy_scales)[rows],
            to_numpy(self.kl_scales)[rows],
        )

    def counts(self, sample_lengths: Array) -> Array:
        """[samples] bool: False for a sample that adds exactly nothing; its forward pass can be saved."""
        advantages, scales = to_numpy(self.advantages), to_numpy(self.scales)
        if advantages.shape[1] != len(sample_lengths):
            starts = np.cumsum(sample_lengths) - sample_lengths
            advantages = np.add.reduceat(np.abs(advantages), starts, axis=1)
        policy = ((advantages != 0) & (scales != 0)).any(axis=0)
        return policy | (to_numpy(self.entropy_scales) != 0) | (to_numpy(self.kl_scales) != 0)


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers that parts read."""

    clip_low: float = 0.2  # ε_low
    clip_high: float = 0.2  # ε_high
    length_constant: float | None = None  # C; None: the step's max_response_tokens
    shaping_gamma: float = 0.1  # γ of f(p) = p/(p+γ), or of (1−p)^γ, or the share γ of tokens
    discount: float = 1.0  # γ of GAE
    gae_lambda: float = 0.95  # λ of GAE
    correction_low: float = 0.5
    correction_high: float = 2.0


@dataclass(frozen=True)
class SampleView:
    """Samples of one optimizer step as numpy, float64; what advantages and loss aggregations read."""

    lengths: Array  # [samples] int64
    groups: Array  # [samples] int64, 0 … G−1
    rewards: Array  # [samples]
    is_demo: Array  # [samples] bool
    is_rehearsal: Array  # [samples] bool, among `is_demo`
    weights: Array  # [samples] α or β
    prompt_lengths: Array  # [samples] int64
    batch: BatchShape
    settings: Settings
    values: Array | None = None  # [R]
    token_rewards: Array | None = None  # [R], added to the reward of the last token
    teacher_gaps: Array | None = None  # [R] log π_frozen − log π_old; 0 on demonstrations

    @property
    def num_groups(self) -> int:
        return int(self.groups.max(initial=-1)) + 1

    @cached_property
    def sample_of_token(self) -> Array:
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def members(self, stream: str) -> Array:
        return _members(stream, self.is_demo, self.is_rehearsal)


@dataclass(frozen=True)
class TokenView:
    """Detached per-token tensors of one forward pass; what denominators and shapings read."""

    logprobs: Tensor  # [R] sg(log π_θ)
    old_logprobs: Tensor  # [R]; equal to logprobs on demonstrations: no old policy is known there
    lengths: Tensor  # [samples] int64
    sample_of_token: Tensor  # [R] int64
    is_demo: Tensor  # [R] bool
    is_rehearsal: Tensor  # [R] bool, among `is_demo`
    entropy: Tensor | None  # [R]
    settings: Settings
    ref_logprobs: Tensor | None = None  # [R] of the frozen policy

    def sample_sum(self, per_token: Tensor) -> Tensor:
        """Sum over each sample, given back to each of its tokens: [R] → [R]."""
        if per_token.numel() == 0:
            return per_token
        sums = torch.segment_reduce(per_token, "sum", lengths=self.lengths, unsafe=True)
        return sums[self.sample_of_token]

    def sample_mean(self, per_token: Tensor) -> Tensor:
        """Mean over each sample, given back to each of its tokens: [R] → [R]."""
        return self.sample_sum(per_token) / self.lengths[self.sample_of_token]

    @cached_property
    def log_ratio_old(self) -> Tensor:
        """[R] log π_θ/π_old; 0 on demonstrations."""
        return self.logprobs - self.old_logprobs

    def members(self, stream: str) -> Tensor:
        return _members(stream, self.is_demo, self.is_rehearsal)


def _members(stream: str, is_demo: Mask, is_rehearsal: Mask) -> Mask:
    """Which samples, or tokens, are of a stream. Of rollouts alone π_old is known."""
    if stream == "rollouts":
        return ~is_demo
    return is_rehearsal if stream == "rehearsal" else is_demo & ~is_rehearsal


def sample_view(
    sample_lengths: Array | Tensor,
    group_ids: Array | Tensor,
    rewards: Array | Tensor,
    is_demo: Array | Tensor,
    weights: Array | Tensor,
    batch: BatchShape,
    settings: Settings,
    *,
    is_rehearsal: Array | Tensor | None = None,
    prompt_lengths: Array | Tensor | None = None,
    values: Array | Tensor | None = None,
    token_rewards: Array | Tensor | None = None,
    teacher_gaps: Array | Tensor | None = None,
) -> SampleView:
    lengths = to_numpy(sample_lengths).astype(np.int64)
    if (lengths < 1).any():
        raise ValueError(f"sample {int(np.argmax(lengths < 1))} has no response token")
    return SampleView(
        lengths=lengths,
        groups=np.unique(to_numpy(group_ids), return_inverse=True)[1].astype(np.int64),
        rewards=to_numpy(rewards).astype(np.float64),
        is_demo=to_numpy(is_demo).astype(bool),
        is_rehearsal=np.zeros(len(lengths), bool) if is_rehearsal is None else to_numpy(is_rehearsal),
        weights=to_numpy(weights).astype(np.float64),
        prompt_lengths=np.zeros_like(lengths) if prompt_lengths is None else to_numpy(prompt_lengths),
        batch=batch,
        settings=settings,
        values=None if values is None else to_numpy(values).astype(np.float64),
        token_rewards=None if token_rewards is None else to_numpy(token_rewards).astype(np.float64),
        teacher_gaps=None if teacher_gaps is None else to_numpy(teacher_gaps).astype(np.float64),
    )


def token_view(samples: TokenBatch, settings: Settings) -> TokenView:
    logprobs = at_least_float32(samples.logprobs.detach())
    device = logprobs.device
    lengths = on_device(samples.sample_lengths, device, torch.long)
    sample_of_token = torch.repeat_interleave(
        torch.arange(len(lengths), device=device), lengths, output_size=len(logprobs)
    )
    is_demo = on_device(samples.is_demo, device, torch.bool)[sample_of_token]
    is_rehearsal = torch.zeros_like(is_demo)
    if samples.is_rehearsal is not None:
        is_rehearsal = on_device(samples.is_rehearsal, device, torch.bool)[sample_of_token]
    old_logprobs = torch.where(is_demo, logprobs, samples.old_logprobs.detach().to(logprobs))
    entropy = None if samples.entropy is None else samples.entropy.detach().to(logprobs)
    reference = None if samples.ref_logprobs is None else samples.ref_logprobs.detach().to(logprobs)
    return TokenView(
        logprobs,
        old_logprobs,
        lengths,
        sample_of_token,
        is_demo,
        is_rehearsal,
        entropy,
        settings,
        reference,
    )


# ---- what a forward pass tells about its samples, as sums and counts that add up ---------------------


def token_stats(view: TokenView) -> Stats:
    """How far π_θ is from the sampler's π_old on rollouts, the losses by likelihood, the entropy without rehearsal.

    `policy/ratio` and `policy/ratio_squared` of w = π_θ/π_old are what `effective_sample_size` needs;
    `policy/kl_old` is the k3 estimate of KL(π_old‖π_θ), in nats per token.
    """
    rollout = ~view.is_demo
    log_ratio = view.log_ratio_old.double()
    ratio = log_ratio.exp()
    stats = {
        "policy/ratio": masked(ratio, rollout),
        "policy/ratio_squared": masked(ratio.square(), rollout),
        "policy/kl_old": masked(ratio - 1 - log_ratio, rollout),
        "learner/demo_loss": masked(-view.logprobs, view.members("demonstrations")),
        "learner/rehearsal_loss": masked(-view.logprobs, view.is_rehearsal),
    }
    if view.entropy is not None:
        stats["policy/entropy"] = masked(view.entropy, ~view.is_rehearsal)
    return stats


def masked(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the masked values."""
    total = torch.where(mask, values, torch.zeros_like(values)).sum(dtype=torch.float64)
    return total, mask.sum(dtype=torch.float64)


def effective_sample_size(stats: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> float:
    """(Σw)²/(N Σw²) of the importance weights w = π_θ/π_old of N tokens: 1 when all agree, 1/N at worst."""
    total, count = (float(x) for x in stats["policy/ratio"])
    squares = float(stats["policy/ratio_squared"][0])
    return total**2 / (count * squares) if count else 1.0


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def on_device(x: Array | Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`x` there. To a GPU it goes from page-locked memory: else the copy waits for all that the GPU has to do."""
    tensor = torch.as_tensor(x, dtype=dtype)
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_numpy(x: Array | Tensor) -> Array:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
