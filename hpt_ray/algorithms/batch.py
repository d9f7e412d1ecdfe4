"""The arrays the estimator works on: rows in, weights out.

`TokenRows` is what a forward pass gives (torch, flat response tokens). `RowWeights` is what the
driver knows about an optimizer step (advantages and scales). `RowView` and `TokenView` are the
same data made ready for the families: numpy float64 per row on the driver's side, detached torch
per token on the learner's side. No algorithm is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Nominal sizes of one optimizer step: what was asked for, not what came back."""

    num_questions: int  # N
    num_rollouts: int  # n, sampled per question
    max_response_tokens: int  # C, unless the algorithm sets `length_constant`


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of responses laid end to end: R response tokens in all.

    `logp_now`      [R] log π_θ(token), with gradient
    `logp_old`      [R] log π_old(token) of the sampler; NaN on demonstrations, never read there
    `row_lengths`   [rows] response tokens of each row, at least 1
    `group_ids`     [rows] any integers; equal for rows of the same question
    `rewards`       [rows] R(τ)
    `is_demo`       [rows] bool
    `entropy`       [R] entropy of π_θ at each token, with gradient where there is an entropy bonus
    `values`        [R] V(prefix of the token) of the critic
    `logp_ref`      [R] log-prob under the frozen reference policy
    `prompt_lengths` [rows] used by the official mode's virtual packing only; None: no prompts

    Example: two rollouts of one question, of 2 tokens and 1 token: `TokenRows(logp_now=[-.1, -.2, -.3],
    logp_old=[-.1, -.2, -.3], row_lengths=[2, 1], group_ids=[0, 0], rewards=[1, 0], is_demo=[False, False])`.
    """

    logp_now: Tensor
    logp_old: Tensor
    row_lengths: Tensor
    group_ids: Tensor
    rewards: Tensor
    is_demo: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None
    logp_ref: Tensor | None = None
    prompt_lengths: Tensor | None = None

    def batch_shape(self) -> BatchShape:
        """The sizes if these rows are the whole step: N groups, n of the largest, C the longest row."""
        groups, lengths = to_numpy(self.group_ids), to_numpy(self.row_lengths)
        _, sizes = np.unique(groups[~to_numpy(self.is_demo).astype(bool)], return_counts=True)
        return BatchShape(
            num_questions=max(len(np.unique(groups)), 1),
            num_rollouts=int(sizes.max(initial=1)),
            max_response_tokens=int(lengths.max(initial=1)),
        )


@dataclass(frozen=True, slots=True)
class RowWeights:
    """What the rewards of an optimizer step come to, for K terms. The learner multiplies and adds.

    `advantages` [K, rows], or [K, R] where a term has one per token; 0 where a term does not apply
    `scales`     [K, rows] coefficient · gate weight / Z; 0 where a term does not apply
    `entropy_scales`, `kl_scales` [rows] the same for the entropy bonus and the KL loss
    """

    advantages: Array | Tensor
    scales: Array | Tensor
    entropy_scales: Array | Tensor
    kl_scales: Array | Tensor

    def token_advantages(self, row_lengths: Array) -> Array:
        """[K, R]: the form a pack carries."""
        advantages = to_numpy(self.advantages)
        if advantages.shape[1] == row_lengths.sum():
            return advantages
        return np.repeat(advantages, row_lengths, axis=1)

    def counts(self, row_lengths: Array) -> Array:
        """[rows] bool: False for a row that adds exactly nothing; its forward pass can be saved."""
        advantages, scales = to_numpy(self.advantages), to_numpy(self.scales)
        if advantages.shape[1] != len(row_lengths):
            starts = np.cumsum(row_lengths) - row_lengths
            advantages = np.add.reduceat(np.abs(advantages), starts, axis=1)
        policy = ((advantages != 0) & (scales != 0)).any(axis=0)
        return policy | (to_numpy(self.entropy_scales) != 0) | (to_numpy(self.kl_scales) != 0)


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers that parts read."""

    clip_low: float = 0.2  # ε_low
    clip_high: float = 0.2  # ε_high
    length_constant: float | None = None  # C; None: the step's max_response_tokens
    shaping_gamma: float = 0.1  # γ of f(p) = p/(p+γ)
    discount: float = 1.0  # γ of GAE
    gae_lambda: float = 0.95  # λ of GAE
    correction_low: float = 0.5
    correction_high: float = 2.0


@dataclass(frozen=True)
class RowView:
    """Rows of one optimizer step as numpy, float64; what advantages and normalizers read."""

    lengths: Array  # [rows] int64
    groups: Array  # [rows] int64, 0 … G−1
    rewards: Array  # [rows]
    is_demo: Array  # [rows] bool
    weights: Array  # [rows] α or β
    prompt_lengths: Array  # [rows] int64
    batch: BatchShape
    settings: Settings
    values: Array | None = None  # [R]
    token_rewards: Array | None = None  # [R], added to the reward of the last token

    @property
    def num_groups(self) -> int:
        return int(self.groups.max(initial=-1)) + 1

    @cached_property
    def row_of_token(self) -> Array:
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def members(self, stream: str) -> Array:
        return self.is_demo if stream == "demonstrations" else ~self.is_demo


@dataclass(frozen=True)
class TokenView:
    """Detached per-token tensors of one forward pass; what denominators and shapings read."""

    logp: Tensor  # [R] sg(log π_θ)
    logp_old: Tensor  # [R]; equal to logp on demonstrations: no old policy is known there
    lengths: Tensor  # [rows] int64
    row_of_token: Tensor  # [R] int64
    is_demo: Tensor  # [R] bool
    entropy: Tensor | None  # [R]
    settings: Settings

    def row_sum(self, per_token: Tensor) -> Tensor:
        """Sum over each row, given back to each of its tokens: [R] → [R]."""
        if per_token.numel() == 0:
            return per_token
        sums = torch.segment_reduce(per_token, "sum", lengths=self.lengths, unsafe=True)
        return sums[self.row_of_token]

    def row_mean(self, per_token: Tensor) -> Tensor:
        """Mean over each row, given back to each of its tokens: [R] → [R]."""
        return self.row_sum(per_token) / self.lengths[self.row_of_token]

    @cached_property
    def log_ratio_old(self) -> Tensor:
        """[R] log π_θ/π_old; 0 on demonstrations."""
        return self.logp - self.logp_old


def token_view(rows: TokenRows, settings: Settings) -> TokenView:
    logp = at_least_float32(rows.logp_now.detach())
    device = logp.device
    lengths = torch.as_tensor(rows.row_lengths, device=device).long()
    row_of_token = torch.repeat_interleave(
        torch.arange(len(lengths), device=device), lengths, output_size=len(logp)
    )
    is_demo = torch.as_tensor(rows.is_demo, device=device).bool()[row_of_token]
    logp_old = torch.where(is_demo, logp, rows.logp_old.detach().to(logp))
    entropy = None if rows.entropy is None else rows.entropy.detach().to(logp)
    return TokenView(logp, logp_old, lengths, row_of_token, is_demo, entropy, settings)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_numpy(x: Array | Tensor) -> Array:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
