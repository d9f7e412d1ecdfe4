"""What a step came to: the numbers of its line in metrics.jsonl, from its groups, decisions and updates."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hpt_ray.algorithms import BatchShape, Estimator
from hpt_ray.algorithms.advantages import ADVANTAGES
from hpt_ray.algorithms.batch import sample_view
from hpt_ray.algorithms.gates import samples_of
from hpt_ray.config.schema import Config
from hpt_ray.errors import SamplerMismatch
from hpt_ray.learner.scoring import needs_reference_scores
from hpt_ray.observe.tables import Shown
from hpt_ray.types import (
    Decision,
    FinishReason,
    Group,
    Outcome,
    RewardResult,
    Rollout,
    UpdateResult,
    can_train,
)

Pairs = list[tuple[Group, Decision]]
BAD_OUTCOMES = {Outcome.UNPARSABLE, Outcome.TIMEOUT, Outcome.ERROR}


class StepReport:
    """The clock of one step, and its line. `version` is that of the learner's weights as the step begins."""

    def __init__(self, version: int, aborted_tokens: int = 0):
        self.begin_s = time.time()
        self._version, self._aborted_tokens = version, aborted_tokens
        self._rollout_s = 0.0

    def rollouts_done(self) -> None:
        """One more group is in; the last call counts."""
        self._rollout_s = time.time() - self.begin_s

    def metrics(self, pairs: Pairs, updates: list[UpdateResult], aborted_tokens: int = 0) -> dict[str, Any]:
        """All that the groups, the decisions and the updates say. `aborted_tokens`: see `tokens_saved`."""
        off_policy_steps = off_policy_metrics(pairs, self._version)
        step_s = time.time() - self.begin_s
        # What was generated ahead took as long as the step, not as long as the wait for it.
        rollout_s = step_s if off_policy_steps["rollout/off_policy_steps_mean"] else self._rollout_s
        return {
            **rollout_metrics(pairs, rollout_s),
            **off_policy_steps,
            **selection_metrics(pairs, updates),
            "selection/tokens_saved": tokens_saved(pairs, aborted_tokens - self._aborted_tokens),
            **learner_metrics(updates),
            "time/rollout_s": self._rollout_s,
            "time/step_s": step_s,
        }


def rollout_metrics(pairs: Pairs, rollout_s: float) -> dict[str, Any]:
    """Rewards, outcomes and lengths of the step's rollouts; None where there were none.

    Rollouts that were aborted or lost are counted as such and are in no mean; those whose reward failed are in no
    mean of rewards, and those that continue a prefix have one of their own.
    """
    everything = [pair for group, _ in pairs for pair in group.pairs]
    finishes = Counter(rollout.finish.value for rollout, _ in everything)
    graded = [(r, v) for r, v in everything if r.finish.is_response]
    rollouts, results = [r for r, _ in graded], [v for _, v in graded]
    outcomes = Counter(result.outcome.value for result in results)
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    num_failed = sum(result.outcome.is_failure for result in results)
    rewards, prefix_rewards = (
        [v for r, v in graded if not v.outcome.is_failure and bool(r.prefix_length) == has_prefix]
        for has_prefix in (False, True)
    )
    metrics = defaultdict(list)
    for name, value in (item for result in rewards for item in result.metrics.items()):
        metrics[name].append(value)
    return {
        "reward/mean": _mean(result.score for result in rewards),
        "reward/failure_share": num_failed / len(results) if results else None,
        **{f"reward/outcome/{name}": count for name, count in outcomes.items()},
        **{f"reward/metric/{name}": float(np.mean(values)) for name, values in metrics.items()},
        **{f"rollout/finish/{name}": count for name, count in finishes.items()},
        "rollout/length_mean": _mean(lengths),
        "rollout/truncated_ratio": _mean(r.truncated for r in rollouts),
        "rollout/tokens_per_s": sum(r.num_sampled for r in rollouts) / rollout_s if rollouts else None,
        **_prefix_metrics(rollouts, prefix_rewards),
    }


def _prefix_metrics(rollouts: list[Rollout], rewards: list[RewardResult]) -> dict[str, Any]:
    """Nothing where no rollout continues a prefix."""
    lengths = [rollout.prefix_length for rollout in rollouts if rollout.prefix_length]
    if not lengths:
        return {}
    return {
        "reward/prefix_mean": _mean(result.score for result in rewards),
        "rollout/prefix_ratio": len(lengths) / len(rollouts),
        "rollout/prefix_length_mean": _mean(lengths),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def off_policy_metrics(pairs: Pairs, version: int) -> dict[str, Any]:
    """How many versions behind the learner's weights each rollout began, as mean and histogram."""
    behind = Counter(
        version - rollout.weight_version
        for group, _ in pairs
        for rollout in group.rollouts
        if rollout.finish.is_response
    )
    total = behind.total()
    mean = sum(steps * count for steps, count in behind.items()) / total if total else None
    histogram = {
        f"rollout/off_policy_steps/{steps}": count for steps, count in sorted(behind.items()) if mean
    }
    return {"rollout/off_policy_steps_mean": mean, **histogram}


def tokens_saved(pairs: Pairs, aborted_tokens: int) -> float:
    """Tokens that early decisions kept from being sampled, estimated.

    An aborted rollout is taken to have become as long as the mean of those that finished; what had been
    sampled of it when it was aborted (`aborted_tokens` in all) was not saved.
    """
    rollouts = [rollout for group, _ in pairs for rollout in group.rollouts]
    lengths = [r.num_sampled for r in rollouts if r.finish.is_response]
    num_aborted = sum(r.finish is FinishReason.ABORT for r in rollouts)
    return max(0.0, num_aborted * float(np.mean(lengths)) - aborted_tokens) if lengths else 0.0


def selection_metrics(pairs: Pairs, updates: list[UpdateResult]) -> dict[str, Any]:
    """The gate's decisions, as shares of prompts and of training samples, and its reasons."""
    num_samples = sum(update.num_samples for update in updates)
    reasons = Counter(decision.reason for _, decision in pairs)
    alpha = sum(decision.rollout_weight for _, decision in pairs)
    beta = sum(decision.demo_weight for _, decision in pairs)
    return {
        "selection/demo_share": beta / (alpha + beta) if alpha + beta else None,
        "selection/demo_prompt_ratio": float(np.mean([d.demo_weight > 0 for _, d in pairs])),
        "selection/demo_sample_ratio": sum(u.num_demo_samples for u in updates) / num_samples
        if num_samples
        else None,
        **{f"selection/reason/{reason}": count for reason, count in reasons.items()},
    }


def learner_metrics(updates: list[UpdateResult]) -> dict[str, Any]:
    """What the first update (whose weights are the sampler's) and the last one of the step came to."""
    first, last = updates[0].metrics, updates[-1].metrics
    seconds = sum(update.seconds for update in updates)
    tokens = sum(update.num_tokens for update in updates)
    of_first = ("policy/entropy", "policy/logprob_gap_mean", "policy/logprob_gap_max")
    return {
        **last,
        **{name: first.get(name) for name in of_first},
        "learner/tokens_per_s": tokens / seconds if tokens else None,
        "learner/skipped_samples": sum(update.num_skipped_samples for update in updates),
        "learner/skipped_updates": sum(update.skipped is not None for update in updates),
        **_critic_metrics(updates),
        "time/learner_s": seconds,
    }


# Mean gap of log-probs in nats that rounding alone does not explain, by `model.dtype`. Seen: 2e-7 in float32 on a CPU,
# 1e-4 with a GPU's shorter products, 0.01 in bfloat16.
GAP_LIMITS = {"float32": 5e-3, "bfloat16": 0.1}


def check_gap(config: Config, step: int, metrics: Mapping[str, Any]) -> None:
    """Raise `SamplerMismatch` where a step says that sampler and learner compute different models.

    With `model.batch_invariant` any step, and any gap. Else the first: nothing has been trained by then, so both have
    the same weights. Not asked where the run was told how to live with a gap, or samples from a cut distribution.
    """
    if config.model.batch_invariant and metrics.get("policy/logprob_gap_max"):
        raise SamplerMismatch(
            f"With `model.batch_invariant` sampler and learner compute the same log-probs, but at step {step} they "
            f"differ by up to {metrics['policy/logprob_gap_max']:.2g} nats a token. Are all processes on machines of "
            "one kind? Train with the gap by model.batch_invariant=false."
        )
    if step > 1:
        return
    gap, limit = metrics.get("policy/logprob_gap_mean"), GAP_LIMITS[config.model.dtype]
    is_told = config.learner.recompute_old_logprobs or config.algorithm.correction != "none"
    if gap is None or gap <= limit or is_told or config.rollout.is_cut:
        return
    raise SamplerMismatch(
        f"At the first step the log-probs of sampler and learner differ by {gap:.2g} nats a token on average "
        f"({metrics['policy/logprob_gap_max']:.2g} at most) under the same weights, where {config.model.dtype} "
        f"explains at most {limit:g}: vLLM and transformers do not compute the same model, and every ratio would be "
        "wrong. Use another model or other `model.config_overrides`; or, to train with the gap, set "
        "learner.recompute_old_logprobs=true or algorithm.correction=token_truncate."
    )


def _critic_metrics(updates: list[UpdateResult]) -> dict[str, Any]:
    if "critic/grad_norm" not in updates[-1].metrics:
        return {}
    return {"critic/skipped_updates": sum(update.critic_skipped is not None for update in updates)}


def failures_of(pairs: Pairs) -> Counter[str]:
    """What did not go as it should, by name: verifier outcomes and lost rollouts."""
    failures: Counter[str] = Counter()
    for group, _ in pairs:
        for rollout, result in group.pairs:
            if rollout.finish is FinishReason.LOST:
                failures[f"rollout/{rollout.finish.value}"] += 1
            elif result.outcome in BAD_OUTCOMES:
                failures[f"verifier/{result.outcome.value}"] += 1
    return failures


def responses_of(group: Group, decision: Decision, estimator: Estimator) -> Iterator[Shown]:
    """The responses to a prompt, as a person is shown them."""
    for (rollout, result), advantage in zip(
        group.pairs, advantages_of(group, decision, estimator), strict=True
    ):
        if rollout.finish.is_response:
            yield Shown(group, decision, rollout, result, advantage)


def advantages_of(group: Group, decision: Decision, estimator: Estimator) -> list[float | None]:
    """Â of each rollout; None where it trains nothing, or not the rewards of its own group decide it."""
    found = iter(_advantages(group, decision, estimator))
    return [next(found, None) if can_train(*pair) else None for pair in group.pairs]


def _advantages(group: Group, decision: Decision, estimator: Estimator) -> list[float]:
    """Â of the responses that train, where the rewards of their own group decide it; else none."""
    samples = samples_of(group, decision, index=0, prefixes=estimator.trains_prefixes)
    term = next((term for term in estimator.terms if term.stream == "rollouts"), None)
    if term is None or not samples or samples[0].is_demo or needs_reference_scores(estimator):
        return []
    part = ADVANTAGES[term.advantage]
    if part.needs & {"all_samples", "values", "teacher"}:
        return []
    lengths = np.array([sample.response_length for sample in samples])
    view = sample_view(
        lengths,
        np.zeros_like(lengths),
        np.array([sample.reward for sample in samples]),
        np.array([sample.is_demo for sample in samples]),
        np.array([sample.weight for sample in samples]),
        BatchShape(1, len(samples), int(lengths.max())),
        estimator.settings,
        prompt_lengths=np.array([sample.prompt_length for sample in samples]),
    )
    return part.function(view)[~view.is_demo].tolist()
