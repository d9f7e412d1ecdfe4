"""The records that travel through a step, in the order of the data flow.

    Prompt ─▶ Rollout ─▶ RewardResult ─▶ Group ─▶ Decision ─▶ Sample ─▶ MicroBatch

Token ids are the truth (`numpy` int32); text is a view for reward functions and for people. Nothing here
imports Ray, vLLM or DeepSpeed, so every record can be made by hand in a test.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

# Some chat templates open the response for the model; published demonstrations may open it again.
OPENINGS = ("<think>\n", "<think>")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """τ*: a worked response. `token_ids` ends with the same end-of-turn token a rollout ends with."""

    token_ids: np.ndarray  # [L] int32
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """q: one prompt, its reference answer and, where the data has one, its demonstration.

    Example: `Prompt(id="gsm8k/17", token_ids=[1, 9, 4], text="What is 2+2?", ground_truth="4",
    data_source="openai/gsm8k", demonstration=Demonstration([7, 2], "4"))`
    """

    id: str  # unique within a run: "<data_source>/<index>"
    token_ids: np.ndarray  # [P] int32, ends where the response begins
    text: str  # as rendered, for people
    # None only where neither gate nor reward function needs one
    ground_truth: str | float | list | dict | None
    data_source: str  # chooses the reward function
    demonstration: Demonstration | None = None
    # the further columns of the data's row, `extra_info` spread out
    extra: dict = field(default_factory=dict)
    # the prompt as its file has it: a text, or messages {role, content}
    source: str | list[dict[str, str]] = ""

    @property
    def opening(self) -> str:
        """What the prompt ends with and the response has begun with: `<think>\\n`, or nothing."""
        return opening_of(self.text)


def opening_of(prompt: str) -> str:
    return next((opening for opening in OPENINGS if prompt.endswith(opening)), "")


class FinishReason(enum.StrEnum):
    """Why a rollout ended."""

    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # truncated at the token limit
    ABORT = "abort"  # no longer needed
    LOST = "lost"  # its worker failed and no retry was left

    @property
    def is_response(self) -> bool:
        """The model gave a response: it was neither aborted nor lost."""
        return self in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True, slots=True)
class Rollout:
    """τ_i: one sampled response. `logprobs[t]` is log π_old(token_ids[t]) as the sampler drew it.

    It may continue the first `prefix_length` tokens of the prompt's demonstration: they belong to the response, and
    their logprobs are NaN. One that is `superseded` trains nothing: its prompt was then drawn again, with a prefix.
    """

    prompt_id: str
    sample: int  # 0 … n−1 within its group
    token_ids: np.ndarray  # [L] int32, with the end token where finish is STOP
    logprobs: np.ndarray  # [L] float32
    finish: FinishReason
    weight_version: int
    text: str  # decoded without special tokens
    prefix_length: int = 0
    superseded: bool = False

    @property
    def num_sampled(self) -> int:
        """Tokens that are the policy's own."""
        return len(self.token_ids) - self.prefix_length

    @property
    def truncated(self) -> bool:
        return self.finish is not FinishReason.STOP

    @classmethod
    def missing(cls, prompt_id: str, sample: int, finish: FinishReason) -> Rollout:
        """What stands in a group for a response that was aborted or lost: no tokens, no version."""
        return cls(prompt_id, sample, np.zeros(0, np.int32), np.zeros(0, np.float32), finish, -1, "")


class Outcome(enum.StrEnum):
    """What grading one response came to. Every value is counted in the metrics."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing that could be an answer was found
    UNPARSABLE = "unparsable"  # an answer was found and could not be read
    TIMEOUT = "timeout"  # grading took longer than its limit and was killed
    ERROR = "error"  # the reward function itself failed

    @property
    def is_failure(self) -> bool:
        """There is no reward: the response does not train, neither as right nor as wrong."""
        return self in (Outcome.TIMEOUT, Outcome.ERROR)


@dataclass(frozen=True, slots=True)
class RewardResult:
    """R(τ): the score of one response, how it came about, and what was read as the answer."""

    score: float
    outcome: Outcome
    extracted: str | None = None
    detail: str | None = None  # what went wrong (ERROR, UNPARSABLE), or the stage that decided
    metrics: Mapping[str, float] = field(default_factory=dict)  # further numbers of the reward function

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


def has_reward(rollout: Rollout, result: RewardResult) -> bool:
    """Lost and aborted rollouts have none, and neither have those whose reward failed: they say nothing."""
    return rollout.finish.is_response and not result.outcome.is_failure


def can_train(rollout: Rollout, result: RewardResult) -> bool:
    """It has a reward and a token of its own, and its prompt was not drawn again."""
    return has_reward(rollout, result) and rollout.num_sampled > 0 and not rollout.superseded


@dataclass(frozen=True, slots=True)
class Group:
    """All n rollouts of one prompt with their results: what the gate decides on.

    One that is `replaced` would train nothing: another prompt was drawn in its place.
    """

    prompt: Prompt
    rollouts: list[Rollout]
    results: list[RewardResult]
    replaced: bool = False

    @property
    def pairs(self) -> Iterator[tuple[Rollout, RewardResult]]:
        """Each rollout with its result."""
        return zip(self.rollouts, self.results, strict=True)

    @property
    def own(self) -> list[tuple[Rollout, RewardResult]]:
        """The pairs of rollouts that continue no prefix: they alone tell what the policy can do."""
        return [pair for pair in self.pairs if not pair[0].prefix_length]

    @property
    def num_correct(self) -> int:
        """Of its own."""
        return sum(result.correct for _, result in self.own)


@dataclass(frozen=True, slots=True)
class Decision:
    """α, β: how much the rollouts and the demonstration of one prompt count (paper, Eq 9 and 10).

    The counts are of rollouts without a prefix. `reason` is a word for the metrics: "solved", "unsolved", …;
    "replaced" of a group that was.
    """

    rollout_weight: float  # α = f(P)
    demo_weight: float  # β = g(P)
    num_correct: int
    num_rollouts: int
    reason: str


@dataclass(slots=True)
class Sample:
    """One sequence the learner trains on: a rollout or a demonstration of one prompt.

    A rollout that continues a prefix comes as two: what it sampled, the prefix being part of its prompt, and the prefix
    as a demonstration.
    The policy terms of the estimator act on the response tokens only. `old_logprobs` is the sampler's
    for a rollout and NaN for a demonstration: no policy of ours sampled it.
    """

    prompt_id: str
    token_ids: np.ndarray  # [P+L] int32, prompt then response
    prompt_length: int  # P
    old_logprobs: np.ndarray  # [L] float32
    is_demo: bool
    reward: float
    group: int  # index of the prompt within the optimizer step
    weight: float = 1.0  # α or β of the gate
    is_rehearsal: bool = False  # a demonstration that belongs to no prompt of the step
    # Filled in on rollouts where the algorithm asks for it, the first two before the sample is weighed:
    values: np.ndarray | None = None  # [L] float32, the critic's V of what stands before each token
    ref_logprobs: np.ndarray | None = None  # [L] float32, log-prob under the frozen policy (KL in the reward)
    returns: np.ndarray | None = None  # [L] float32, G = Â + V, what the critic learns
    value_scale: float = 0.0  # gate weight / Z of the value loss

    @property
    def response_length(self) -> int:
        return len(self.token_ids) - self.prompt_length


@dataclass(slots=True)
class MicroBatch:
    """Samples laid end to end for one forward pass; what one learner rank gets as one micro-batch.

    With samples of T tokens in all, of which R are response tokens, and K policy terms:

    `token_ids`, `position_ids`   [T] int32, positions start again at 0 with every sample
    `sample_lengths`                 [samples] int32, prompt and response together
    `response_lengths`            [samples] int32
    `old_logprobs`                    [R] float32, NaN on demonstrations
    `advantages`                  [K, R] float32, term by term (0 where a term does not apply)
    `scales`                      [K, samples] float32, coefficient · gate weight / Z, term by term
    `entropy_scales`, `kl_scales` [samples] float32, the same for the entropy bonus and the KL loss
    `group_ids`, `is_demo`, `is_rehearsal` [samples]

    A dummy micro-batch (no sample that counts) has scales of zero: it runs the same collectives as the
    others and adds exactly nothing.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    sample_lengths: np.ndarray
    response_lengths: np.ndarray
    old_logprobs: np.ndarray
    advantages: np.ndarray
    scales: np.ndarray
    entropy_scales: np.ndarray
    kl_scales: np.ndarray
    group_ids: np.ndarray
    is_demo: np.ndarray
    is_rehearsal: np.ndarray
    is_dummy: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class ValueTargets:
    """What the critic learns on one micro-batch with R response tokens.

    `values`   [R] float32, V as the samples were scored; the clip of the value loss starts from it
    `returns`  [R] float32, G = Â + V
    `scales`   [samples] float32, gate weight / Z, where Z is that of the rollouts' policy term
    """

    values: np.ndarray
    returns: np.ndarray
    scales: np.ndarray


Spans = dict[str, list[tuple[str, float, float]]]  # actor -> (name, start, end) in seconds of time.time()


@dataclass(frozen=True)
class UpdateResult:
    """One optimizer step, over all ranks."""

    metrics: dict[str, float | None]
    num_tokens: int
    num_samples: int
    num_demo_samples: int
    num_skipped_samples: int  # samples whose terms are all exactly zero: never sent
    seconds: float  # from the first micro-batch to the step
    busy_s: float  # of the policy's busiest rank
    skipped: str | None  # why no weight was changed: "not_finite" or "grad_norm"
    critic_skipped: str | None
    spans: Spans  # of all ranks, since the update before
