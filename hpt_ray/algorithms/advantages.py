"""Advantages Â: how hard, and in which direction, a response is pushed.

In: a `SampleView` (rewards and groups of one optimizer step, numpy float64). Out: [samples], or [R] for
the one that is per token (`gae`). Values on samples of the other stream are meaningless; the caller
zeroes them. A group is all rollouts of one prompt; a union is the group with its demonstration.
A group of one has no baseline: its centred advantage is 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpt_ray.algorithms.base import Part, Stream
from hpt_ray.algorithms.batch import Array, SampleView
from hpt_ray.algorithms.outside import Table

STD_EPSILON = 1e-6  # added to the standard deviation, as GRPO and its descendants do


def one(view: SampleView) -> Array:
    return np.ones(len(view.rewards))


def reward(view: SampleView) -> Array:
    return view.rewards


def signed(view: SampleView) -> Array:
    return 2 * view.rewards - 1


def correct(view: SampleView) -> Array:
    return np.maximum(signed(view), 0)


def wrong(view: SampleView) -> Array:
    return np.minimum(signed(view), 0)


def centred(view: SampleView, groups: Array, members: Array) -> tuple[Array, Array, Array]:
    """R − mean over the sample's group, with the group's unbiased std and size, all [samples].

    Only `members` count in mean, std and size. Rewards are first measured from the group's least,
    so that equal rewards give exactly 0.
    """
    num_groups = int(groups.max(initial=-1)) + 1
    least = np.full(num_groups, np.inf)
    np.minimum.at(least, groups[members], view.rewards[members])
    least = np.where(np.isfinite(least), least, 0.0)
    shifted = view.rewards - least[groups]
    size = np.bincount(groups[members], minlength=num_groups)
    mean = np.bincount(groups[members], shifted[members], num_groups) / np.maximum(size, 1)
    deviation = np.where(size[groups] > 1, shifted - mean[groups], 0.0)
    squares = np.bincount(groups[members], deviation[members] ** 2, num_groups)
    std = np.sqrt(squares / np.maximum(size - 1, 1))
    return deviation, std[groups], size[groups]


def group_mean(view: SampleView) -> Array:
    return centred(view, view.groups, ~view.is_demo)[0]


def group_std(view: SampleView) -> Array:
    deviation, std, _ = centred(view, view.groups, ~view.is_demo)
    return deviation / (std + STD_EPSILON)


def leave_one_out(view: SampleView) -> Array:
    deviation, _, size = centred(view, view.groups, ~view.is_demo)
    return deviation * size / np.maximum(size - 1, 1)


def batch_std(view: SampleView) -> Array:
    deviation, std, _ = centred(view, np.zeros_like(view.groups), ~view.is_demo)
    return deviation / (std + STD_EPSILON)


def union_mean(view: SampleView) -> Array:
    return centred(view, view.groups, np.ones_like(view.is_demo))[0]


def union_std(view: SampleView) -> Array:
    deviation, std, _ = centred(view, view.groups, np.ones_like(view.is_demo))
    return deviation / (std + STD_EPSILON)


def token_gae(view: SampleView) -> Array:
    """[R] generalised advantage estimation; the reward stands at the sample's last token."""
    if view.values is None:
        raise ValueError("advantage gae needs the critic's values of every response token")
    rewards = np.zeros(len(view.values)) if view.token_rewards is None else view.token_rewards.copy()
    rewards[np.cumsum(view.lengths) - 1] += view.rewards
    settings = view.settings
    return gae(rewards, view.values, view.lengths, discount=settings.discount, lam=settings.gae_lambda)


def teacher(view: SampleView) -> Array:
    """[R] what the token adds to −KL(π_old‖π_frozen); each token answers for itself alone (a discount of 0)."""
    if view.teacher_gaps is None:
        raise ValueError("advantage teacher needs the frozen policy's logprobs of every rollout")
    return view.teacher_gaps


def continued(view: SampleView) -> Array:
    """A prefix has the mean reward of the rollouts that continue it, so this is the mean of their advantages."""
    return group_mean(view)


_NO_GROUP = "a demonstration is not one of the group's rollouts; use union_mean, union_std, reward or one"
_GROUP = frozenset({"group"})
_ROLLOUTS_ONLY: dict[Stream, str] = {"demonstrations": _NO_GROUP}

ADVANTAGES: Table[Part] = Table(
    Part,
    {
        "one": Part(
            one,
            "Â = 1",
            not_for={
                "rollouts": "on the policy's own samples E[∇log π] = 0, so Â = 1 is noise without signal"
            },
        ),
        "reward": Part(reward, "Â = R"),
        "signed": Part(signed, "Â = 2R − 1"),
        "correct": Part(correct, "Â = max(2R − 1, 0)"),
        "wrong": Part(wrong, "Â = min(2R − 1, 0)"),
        "group_mean": Part(group_mean, "Â = R − mean_G R", _GROUP, _ROLLOUTS_ONLY),
        "group_std": Part(group_std, "Â = (R − mean_G R)/(std_G R + 1e-6)", _GROUP, _ROLLOUTS_ONLY),
        "leave_one_out": Part(leave_one_out, "Â_i = R_i − mean_{j≠i} R_j", _GROUP, _ROLLOUTS_ONLY),
        "batch_std": Part(
            batch_std,
            "Â = (R − mean_batch R)/(std_batch R + 1e-6)",
            frozenset({"all_samples"}),
            _ROLLOUTS_ONLY,
        ),
        "union_mean": Part(union_mean, "Â = R − mean_{G ∪ demo} R", frozenset({"union"})),
        "union_std": Part(
            union_std, "Â = (R − mean_{G ∪ demo} R)/(std_{G ∪ demo} R + 1e-6)", frozenset({"union"})
        ),
        "continued": Part(
            continued,
            "Â = R − mean_G R, R being that of the rollout that continues the prefix",
            frozenset({"prefixes"}),
            {"rollouts": "a rollout has an advantage of its own; use group_mean"},
        ),
        "gae": Part(
            token_gae,
            "Â_t = Σ_k (γλ)^k δ_{t+k},  δ_t = r_t + γ V_{t+1} − V_t",
            frozenset({"values"}),
            {"demonstrations": "the critic estimates returns of the policy's own responses"},
        ),
        "teacher": Part(
            teacher,
            "Â_t = log π_frozen − log π_old, the frozen policy being the teacher",
            frozenset({"teacher"}),
            {
                "demonstrations": "the policy did not sample them, so the gap is no estimate of KL(π_θ‖π_frozen)"
            },
        ),
    },
    "view",
    Part,
)

# ---- what the critic of PPO needs: GAE on the driver's side, the value loss on the learner's ----------
# Pure functions on flat response tokens. The critic itself, its optimizer and its export live with the learner.


def gae(
    rewards: np.ndarray, values: np.ndarray, sample_lengths: np.ndarray, *, discount: float, lam: float
) -> np.ndarray:
    """Generalised advantage estimation (arXiv 1506.02438, Eq 16), [R] float64.

    δ_t = r_t + γ V_{t+1} − V_t with V = 0 after the last token; Â_t = δ_t + γλ Â_{t+1}.
    `rewards` and `values` are [R]; the critic's targets are `values + gae(…)`.
    """
    num_samples, longest = len(sample_lengths), int(sample_lengths.max(initial=0))
    inside = np.arange(longest) < sample_lengths[:, None]
    reward, value, advantage = (np.zeros((num_samples, longest)) for _ in range(3))
    reward[inside], value[inside] = rewards, values
    next_value, next_advantage = np.zeros(num_samples), np.zeros(num_samples)
    for t in reversed(range(longest)):
        delta = reward[:, t] + discount * next_value - value[:, t]
        # Outside the sample everything is 0, so a shorter sample starts from 0 at its own end.
        next_advantage = np.where(inside[:, t], delta + discount * lam * next_advantage, 0.0)
        next_value = value[:, t]
        advantage[:, t] = next_advantage
    return advantage[inside]


def clipped_value_loss(values: Tensor, values_old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V − G)², (clip(V, V_old ± ε) − G)²) per token, [R]; `clip` ε = inf for no clip.

    The value moves at most ε from the one the advantages were made with (PPO's reference code).
    """
    near = torch.clamp(values, values_old - clip, values_old + clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
