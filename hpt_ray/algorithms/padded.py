"""The estimator for a training loop of your own: padded tensors in, a loss out.

    estimator = make_estimator("hpt")
    weights = sample_weights(estimator, mask.sum(1), rewards, group_ids, is_demo)  # once an optimizer step
    loss, metrics = policy_loss(estimator, logprobs, mask, weights)

These are the two halves of `Estimator` in the shapes that loops have: one row a sample, one column a response token.
Loss and gradient are those of a run with the same samples. docs/library.md has whole examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from hpt_ray.algorithms.batch import Array, BatchShape, SampleWeights, TokenBatch, to_numpy
from hpt_ray.algorithms.estimator import Estimator
from hpt_ray.algorithms.gates import GATES
from hpt_ray.types import Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

Vector = Array | Tensor | Sequence[float]
NO_TOKENS = np.zeros(0, np.int32)


def sample_weights(
    estimator: Estimator,
    lengths: Vector,
    rewards: Vector,
    group_ids: Vector,
    is_demo: Vector | None = None,
    *,
    gate: str | None = None,
    gamma: float = 0.0,
    batch: BatchShape | None = None,
) -> SampleWeights:
    """Advantages, and gate weight / Z, of all samples of one optimizer step.

    `lengths`    [samples] response tokens; a sample without any weighs nothing
    `rewards`    [samples] R(τ); a rollout is correct from 1 on, as for rewards of yours in a run
    `group_ids`  [samples] equal for samples of the same prompt
    `is_demo`    [samples] which are demonstrations; None: none
    `gate`       a name of `GATES`, with `gamma`; None: the algorithm's own
    `batch`      nominal sizes; None: those of these samples, C being the longest response. An algorithm that divides
                 by C (`dr_grpo`, `hpt`, `luffy`) is better given it: `make_estimator("hpt", length_constant=1024)`

    UserError: an unknown gate. ValueError: an algorithm with a critic, with a teacher or with KL in the reward.
    """
    if estimator.advantages_per_token:
        raise ValueError(
            f"{estimator.name} has a critic or a teacher: call Estimator.weigh and Estimator.loss themselves"
        )
    if estimator.kl_coef and estimator.kl_in == "reward":
        raise ValueError("kl_in=reward: set kl_coef=0, and add the sums of kl_token_rewards to the rewards")
    num_tokens = _vector(lengths).astype(np.int64)
    demo = np.zeros(len(num_tokens), bool) if is_demo is None else _vector(is_demo).astype(bool)
    groups, scores = np.unique(_vector(group_ids), return_inverse=True)[1], _vector(rewards).astype(float)
    here = num_tokens > 0
    gate = estimator.gate if gate is None else GATES.checked("gate", gate)
    weights = estimator.weigh(
        num_tokens[here],
        groups[here],
        scores[here],
        demo[here],
        _gate_weights(gate, gamma, groups, scores, demo)[here],
        batch or BatchShape.of(num_tokens[here], groups[here], demo[here]),
    )
    return SampleWeights(*(_spread(per_sample, here) for per_sample in astuple(weights)))


def policy_loss(
    estimator: Estimator,
    logprobs: Tensor,
    mask: Tensor,
    weights: SampleWeights,
    *,
    old_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The share that these samples have of the step's loss, with gradient, and metrics in the words of a run.

    `logprobs`      [samples, T] log π_θ of each response token, with gradient
    `mask`          [samples, T] 1 on response tokens
    `weights`       of these samples: those of the step, or `weights.of(rows)` for a micro-batch
    `old_logprobs`  [samples, T] log π_old of the sampler, anything on demonstrations; None: π_θ itself is π_old
    `entropy`       [samples, T] of π_θ, for `srft`, an entropy bonus and the metrics
    `ref_logprobs`  [samples, T] of the frozen policy, for `kl_coef` and `iw_sft`

    Add up micro-batches and ranks, without a mean: 1/Z is inside. A mean over them must be multiplied by their number.
    """
    num_tokens = mask.bool().sum(1)
    counts = to_numpy(num_tokens > 0) & weights.counts(to_numpy(num_tokens))
    rows = torch.as_tensor(counts.nonzero()[0], device=mask.device)  # the others add exactly nothing
    inside, weights = mask[rows].bool(), weights.of(rows)
    on_rollouts = [term.stream == "rollouts" for term in estimator.terms]
    is_demo = (to_numpy(weights.scales)[on_rollouts] == 0).all(0)

    def flat(padded: Tensor | None) -> Tensor | None:
        return None if padded is None else padded[rows][inside]

    chosen = logprobs[rows][inside]
    samples = TokenBatch(
        logprobs=chosen,
        old_logprobs=chosen.detach() if old_logprobs is None else old_logprobs[rows][inside],
        sample_lengths=num_tokens[rows],
        group_ids=rows,  # groups and rewards went into the weights
        rewards=rows,
        is_demo=torch.as_tensor(is_demo, device=mask.device),
        entropy=flat(entropy),
        ref_logprobs=flat(ref_logprobs),
    )
    loss, stats = estimator.loss(samples, weights)
    return loss, {name: float(total / count) for name, (total, count) in stats.items() if count}


def _vector(values: Vector) -> Array:
    return to_numpy(values if isinstance(values, Tensor) else np.asarray(values))


def _spread(per_sample: Array, here: Array) -> Array:
    """[…, those here] → […, samples], 0 elsewhere."""
    spread = np.zeros((*per_sample.shape[:-1], len(here)))
    spread[..., here] = per_sample
    return spread


def _gate_weights(gate: str, gamma: float, groups: Array, rewards: Array, is_demo: Array) -> Array:
    """[samples] α of rollouts and β of demonstrations, prompt by prompt."""
    weights = np.zeros(len(groups))
    for number in np.unique(groups):
        rollouts, demos = (groups == number) & ~is_demo, (groups == number) & is_demo
        group = group_of(str(number), rewards[rollouts], bool(demos.any()))
        decision = GATES[gate].function(group, gamma, ())
        weights[rollouts], weights[demos] = decision.rollout_weight, decision.demo_weight
    return weights


def group_of(name: str, rewards: Array, has_demonstration: bool) -> Group:
    """What a gate reads: results, and whether there is a demonstration."""
    demonstration = Demonstration(NO_TOKENS, "") if has_demonstration else None
    prompt = Prompt(name, NO_TOKENS, "", "", "", demonstration)
    rollouts = [
        Rollout(name, i, NO_TOKENS, np.zeros(0, np.float32), FinishReason.STOP, 0, "")
        for i in range(len(rewards))
    ]
    results = [
        RewardResult(float(score), Outcome.CORRECT if score >= 1 else Outcome.WRONG) for score in rewards
    ]
    return Group(prompt, rollouts, results)
