"""What samples are told before they train: scores where an algorithm asks for them, then what they weigh.

`SampleScoring` gives values and log-probs of the frozen or of the trained policy; only PPO, a KL in the reward and
`learner.recompute_old_logprobs` need it. Samples come in prompt by prompt. Rollouts of all prompts share
micro-batches, which are scored forward only as soon as there is one for each rank. A prompt goes on when its last
rollout is scored and the prompts before it have gone on: so the order in which scores come back, which no two runs
share, does not become an order of micro-batches and sums. When the samples of a round of micro-batches have been
weighed, the critic trains on that round. Generation goes on meanwhile. Demonstrations are neither scored nor
learned from by the critic.

`weight_samples` is the estimator's half that needs rewards, with KL in the reward and PPO's returns. In: samples of
whole prompts. Out: the samples that count, each with advantages and scales, and sums for the metrics. Pure but for
`returns` and `value_scale`, which it fills in on the samples the critic learns from.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpt_ray.algorithms import BatchShape, Estimator, kl_token_rewards
from hpt_ray.algorithms.advantages import ADVANTAGES
from hpt_ray.cluster.actor_group import ActorGroup, wait_all
from hpt_ray.learner.packing import Packer, WeightedSample, dummy_micro_batch
from hpt_ray.learner.reference import ReferenceScores
from hpt_ray.learner.sums import Sums
from hpt_ray.types import MicroBatch, Sample, ValueTargets

# A micro-batch that is only scored has no policy term.
NO_TERMS = np.zeros((0, 1)), np.zeros(0)


@dataclass
class _Prompt:
    """The samples of one prompt, how many of them are not scored yet, and where they go on to."""

    samples: list[Sample]
    unscored: int
    then: Callable[[list[Sample]], None]


@dataclass
class _ScoredMicroBatch:
    """A micro-batch, its samples in their order, and the prompt of each; a dummy has none."""

    micro_batch: MicroBatch
    samples: list[Sample]
    prompts: list[_Prompt]

    def tell(self, field: str, per_token: np.ndarray) -> None:
        """Give each sample its part of [R] as its `field`."""
        parts = np.split(per_token, np.cumsum(self.micro_batch.response_lengths)[:-1])
        for sample, part in zip(self.samples, parts, strict=not self.micro_batch.is_dummy):
            setattr(sample, field, part)

    def targets(self) -> ValueTargets:
        if not self.samples:
            return ValueTargets(*(np.zeros(1, np.float32) for _ in range(3)))
        return ValueTargets(
            values=np.concatenate([sample.values for sample in self.samples]),
            returns=np.concatenate([sample.returns for sample in self.samples]),
            scales=np.array([sample.value_scale for sample in self.samples], np.float32),
        )


class SampleScoring:
    """Samples in; each prompt's samples on, once they carry their scores, in the order they came.

    `critic` gives `Sample.values`, `reference` `Sample.ref_logprobs`, `policy` (the learner's ranks)
    `Sample.old_logprobs` in the place of the sampler's. Ranks run in lockstep, so there is either a critic or a policy.
    """

    def __init__(
        self,
        *,
        critic: ActorGroup | None = None,
        policy: ActorGroup | None = None,
        reference: ReferenceScores | None = None,
        max_tokens_per_micro_batch: int,
        timeout_s: float,
        sequence_parallel: int = 1,
    ):
        assert critic is None or policy is None
        self._critic, self._policy, self._reference = critic, policy, reference
        self._timeout_s, self._sequence_parallel = timeout_s, sequence_parallel
        together = next((len(ranks) for ranks in (critic, policy) if ranks is not None), sequence_parallel)
        if reference is not None:
            together = max(together, reference.num_together)
        self._packer = Packer(
            num_ranks=together,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            dummy=dummy_micro_batch(0),
            sequence_parallel=sequence_parallel,
        )
        self._samples: list[tuple[Sample, _Prompt]] = []
        self._prompts: deque[_Prompt] = deque()  # those that have not gone on
        self._scoring: list[asyncio.Task[None]] = []
        self._untrained: deque[list[_ScoredMicroBatch]] = deque()

    def add(self, samples: list[Sample], then: Callable[[list[Sample]], None]) -> None:
        """Take in the samples of one prompt, which go on to `then`. Sends what fills a round of micro-batches."""
        rollouts = [sample for sample in samples if not sample.is_demo]
        prompt = _Prompt(samples, len(rollouts), then)
        self._prompts.append(prompt)
        for sample in rollouts:
            sample.returns = None  # a sample that is trained on again is weighed again
            # In these micro-batches the group of a sample is its number here, by which its scores find back to it.
            self._packer.add([WeightedSample(replace(sample, group=len(self._samples)), *NO_TERMS)])
            self._samples.append((sample, prompt))
        self._hand_on()
        for micro_batches in self._packer.full_rounds():
            self._score(micro_batches)

    def _hand_on(self) -> None:
        while self._prompts and self._prompts[0].unscored == 0:
            prompt = self._prompts.popleft()
            prompt.then(prompt.samples)

    async def finish(self) -> None:
        """Score what is left and wait until every prompt has gone on.

        A critic scores at least one round of micro-batches, dummies if need be: it steps, samples or none.
        """
        if self._critic is None and not self._samples:
            return
        for micro_batches in self._packer.last_rounds():
            self._score(micro_batches)
        await asyncio.gather(*self._scoring)
        self._samples, self._scoring = [], []

    def cancel(self) -> None:
        """Wait for no scores any more."""
        for task in self._scoring:
            task.cancel()

    def train(self) -> list[Any]:
        """Start the critic's backward passes of all rounds whose samples have been weighed; the references.

        Rounds go out in the order they were scored in, the same on all ranks.
        """
        pending: list[Any] = []
        while self._critic is not None and self._untrained and _weighed(self._untrained[0]):
            micro_batches = self._untrained.popleft()
            pending += self._critic.send_each(
                "accumulate", [(p.micro_batch, p.targets()) for p in micro_batches]
            )
        return pending

    def _score(self, micro_batches: list[MicroBatch]) -> None:
        """Start scoring one round. The calls are made here, so that all ranks get them in one order."""
        scored = [self._with_samples(micro_batch) for micro_batch in micro_batches]
        arguments = [(micro_batch,) for micro_batch in micro_batches]
        asked: dict[str, list[Any]] = {}  # field of a sample → what holds it, micro-batch by micro-batch
        names: list[str] = []
        if self._critic is not None:
            asked["values"] = self._critic.send_each("values", arguments)
            names += self._critic.names
            self._untrained.append(scored)
        if self._policy is not None:
            asked["old_logprobs"] = self._policy.send_each("logprobs", arguments)
            names += self._policy.names
        if self._reference is not None:
            asked["ref_logprobs"], askers = self._reference.send(micro_batches)
            names += askers
        self._scoring.append(asyncio.create_task(self._receive(scored, asked, names)))

    def _with_samples(self, micro_batch: MicroBatch) -> _ScoredMicroBatch:
        numbers = [] if micro_batch.is_dummy else micro_batch.group_ids.tolist()
        here = [self._samples[number] for number in numbers]
        return _ScoredMicroBatch(micro_batch, [s for s, _ in here], [prompt for _, prompt in here])

    async def _receive(
        self, scored: list[_ScoredMicroBatch], asked: dict[str, list[Any]], names: list[str]
    ) -> None:
        refs = list(itertools.chain(*asked.values()))
        results = iter(await wait_all(refs, names=names, what="score rollouts", timeout_s=self._timeout_s))
        for field, micro_batch in itertools.product(asked, scored):
            found = next(results)
            micro_batch.tell(field, found if field == "values" else found[0])  # log-probs come with entropies
        for micro_batch in scored[:: self._sequence_parallel]:
            for prompt in micro_batch.prompts:
                prompt.unscored -= 1
        self._hand_on()


def _weighed(micro_batches: list[_ScoredMicroBatch]) -> bool:
    return all(sample.returns is not None for micro_batch in micro_batches for sample in micro_batch.samples)


@dataclass(frozen=True)
class Weighed:
    """The samples that count, how many do not, and what was seen."""

    samples: list[WeightedSample]
    num_skipped: int
    sums: Sums


def needs_scores(estimator: Estimator) -> bool:
    """Whether samples must be scored before they can be weighed."""
    return estimator.needs_values or needs_reference_scores(estimator)


def needs_reference_scores(estimator: Estimator) -> bool:
    """Whether the frozen policy must have scored them before they can be weighed."""
    return kl_in_reward(estimator) or estimator.needs_teacher


def kl_in_reward(estimator: Estimator) -> bool:
    return estimator.kl_coef != 0 and estimator.kl_in == "reward"


def weight_samples(estimator: Estimator, samples: list[Sample], batch: BatchShape) -> Weighed:
    """Weigh the samples of whole prompts (of the whole update, where the estimator needs all samples)."""
    if not samples:
        return Weighed([], 0, {})
    lengths = np.array([sample.response_length for sample in samples])
    rewards = np.array([sample.reward for sample in samples], np.float64)
    sums: Sums = {}
    values = token_rewards = teacher_gaps = None
    if kl_in_reward(estimator):
        token_rewards = np.concatenate([_kl_rewards(estimator, sample) for sample in samples])
        num_tokens = sum(sample.response_length for sample in samples if not sample.is_demo)
        sums["policy/kl_ref"] = (-float(token_rewards.sum()) / estimator.kl_coef, num_tokens)
    if estimator.needs_teacher:
        teacher_gaps = np.concatenate([_teacher_gaps(sample) for sample in samples])
        num_tokens = sum(sample.response_length for sample in samples if not sample.is_demo)
        sums["policy/kl_ref"] = (-float(teacher_gaps.sum()), num_tokens)
    if estimator.needs_values:
        values = np.concatenate([_or_zeros(sample.values, sample) for sample in samples])
    elif token_rewards is not None:
        rewards = rewards + np.add.reduceat(token_rewards, np.cumsum(lengths) - lengths)
    weights = estimator.weigh(
        lengths,
        np.array([sample.group for sample in samples]),
        rewards,
        np.array([sample.is_demo for sample in samples]),
        np.array([sample.weight for sample in samples], np.float64),
        batch,
        is_rehearsal=np.array([sample.is_rehearsal for sample in samples]),
        prompt_lengths=np.array([sample.prompt_length for sample in samples]),
        values=values,
        token_rewards=token_rewards if estimator.needs_values else None,
        teacher_gaps=teacher_gaps,
    )
    advantages = weights.token_advantages(lengths)
    ends = np.cumsum(lengths)
    weighed = [
        WeightedSample(
            sample,
            advantages[:, end - length : end],
            np.asarray(weights.scales)[:, i],
            float(weights.entropy_scales[i]),
            float(weights.kl_scales[i]),
        )
        for i, (sample, length, end) in enumerate(zip(samples, lengths, ends, strict=True))
    ]
    if estimator.needs_values:
        sums |= _set_returns(estimator, weighed)
    kept = [sample for sample, counts in zip(weighed, weights.counts(lengths), strict=True) if counts]
    return Weighed(kept, len(samples) - len(kept), sums)


def _kl_rewards(estimator: Estimator, sample: Sample) -> np.ndarray:
    """[L] −coef·KL(π_old‖π_ref) of each token; 0 on a demonstration, which the policy did not sample."""
    if sample.is_demo:
        return np.zeros(sample.response_length)
    reference = _reference_scores(sample)
    return kl_token_rewards(sample.old_logprobs, reference, estimator.kl_coef, estimator.kl_estimator)


def _teacher_gaps(sample: Sample) -> np.ndarray:
    """[L] log π_frozen − log π_old of each token; 0 on a demonstration, which the policy did not sample."""
    if sample.is_demo:
        return np.zeros(sample.response_length)
    return np.asarray(_reference_scores(sample), np.float64) - sample.old_logprobs


def _reference_scores(sample: Sample) -> np.ndarray:
    assert sample.ref_logprobs is not None, f"a rollout of {sample.prompt_id} was not scored by the reference"
    return sample.ref_logprobs


def _or_zeros(values: np.ndarray | None, sample: Sample) -> np.ndarray:
    assert sample.is_demo or values is not None, (
        f"a rollout of {sample.prompt_id} was not scored by the critic"
    )
    return np.zeros(sample.response_length) if values is None else values


def _set_returns(estimator: Estimator, weighed: list[WeightedSample]) -> Sums:
    """Fill in G = Â + V and weight / Z on the rollouts; the moments of G and of G − V.

    Z is that of the policy term with the critic's advantage. That term's coefficient is left out: the
    critic has an optimizer of its own.
    """
    k = next(i for i, t in enumerate(estimator.terms) if "values" in ADVANTAGES[t.advantage].needs)
    coef = estimator.terms[k].coef or 1.0
    moments = np.zeros(4)
    num_tokens = 0
    for item in weighed:
        sample = item.sample
        if sample.is_demo:
            continue
        assert sample.values is not None
        error = item.advantages[k]
        returns = error + sample.values
        sample.returns, sample.value_scale = returns.astype(np.float32), float(item.scales[k] / coef)
        moments += [returns.sum(), (returns**2).sum(), error.sum(), (error**2).sum()]
        num_tokens += len(error)
    names = ("return", "return_squared", "error", "error_squared")
    return {f"critic/{name}": (float(m), num_tokens) for name, m in zip(names, moments, strict=True)}
