"""What a run will cost, in GPU hours: floating-point operations over stated utilisations.

In: the phases of a run, a `ModelShape`, what is known of the data. Out: a `Cost` for three assumptions: the
lengths of answers, how many prompts the gate gives to demonstrations, and how much of a GPU's peak each kind
of work gets are not known before a run, so the cost is a range and never a promise.

Operations of one token: 2·P to read it, P without an input embedding, and 2·layers·width·length for attention to
half a sample on average; training takes three times that, and once more where activations are recomputed.

Against what was published (LUFFY's README, 7B, 64k prompts, A100 of 80 GB, GPU hours): LUFFY 77·8 = 616, RL
with an SFT loss 133·8 = 1064, SFT then RL 130·8 = 1040, SFT 24·8 = 192. docs/paper.md has ours beside them.
`PEAK` is that GPU's; an H100 takes about half the hours. Not counted: start-up, checkpoints, waiting for rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.schema import Config
from hpt_ray.tools.plan.shape import ModelShape

PEAK = 312e12  # bfloat16 operations a second of one A100 or A800
WAITING = 0.3  # of the shorter of generation and training does not run beside the longer


@dataclass(frozen=True, slots=True)
class Assumption:
    """What is not known before a run. Shares are of a limit or of all prompts, utilisations of `PEAK`."""

    answer: float  # mean answer / data.max_response_tokens (paper, Fig 7: 1000 to 6000 of 8192)
    prompt: float  # mean prompt / data.max_prompt_tokens
    demonstration: float  # mean demonstration / data.max_response_tokens (OpenR1-46k: 4.2k of 8192)
    gated: float  # prompts that a gate gives to their demonstration (paper, Fig 6)
    generation: float
    training: float
    scoring: float


LEAST = Assumption(0.15, 0.1, 0.5, 0.4, generation=0.15, training=0.45, scoring=0.5)
EXPECTED = Assumption(0.3, 0.15, 0.5, 0.25, generation=0.1, training=0.35, scoring=0.4)
MOST = Assumption(0.6, 0.3, 0.5, 0.1, generation=0.05, training=0.25, scoring=0.3)


@dataclass(frozen=True)
class Work:
    """Steps of one phase, as the gate and the estimator of that phase shape them."""

    config: Config  # of the phase
    gate: str
    num_rollouts: int  # of a prompt
    scores: int  # forward passes of training samples beside the training one: frozen reference, old log-probs
    has_critic: bool = False


@dataclass(frozen=True)
class Cost:
    """GPU seconds by kind of work; `held` is what the run's GPUs are reserved for, idle or not."""

    busy: Mapping[str, float]
    held: float
    wall: float  # seconds

    @property
    def gpu_hours(self) -> float:
        return self.held / 3600


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data; None leaves a length to the assumption."""

    demonstration_tokens: float | None = None
    prompt_tokens: float | None = None
    evaluation_prompts: Mapping[str, int] = field(default_factory=dict)  # by set


def forward_flops(shape: ModelShape, sample_tokens: float) -> float:
    """Operations of one token of a sample of `sample_tokens`, forward."""
    product = 2 * (shape.num_parameters - shape.num_embedding)
    return product + 2 * shape.num_layers * shape.query_width * sample_tokens


def cost_of(
    works: Sequence[Work],
    shape: ModelShape,
    gpus: Mapping[str, float],
    facts: DataFacts,
    assumed: Assumption,
    *,
    shared: bool,
) -> Cost:
    """The cost of all phases. `gpus`: how many each actor group has; `shared`: engines and ranks have the same."""
    busy: dict[str, float] = {}
    wall = 0.0
    for work in works:
        step = _step_flops(work, shape, facts, assumed)
        rates = {"generation": assumed.generation, "training": assumed.training, "scoring": assumed.scoring}
        rates["evaluation"] = assumed.generation
        seconds = {name: flops / (PEAK * rates[name]) for name, flops in step.items()}
        for name, amount in seconds.items():
            busy[name] = busy.get(name, 0.0) + amount * work.config.run.steps
        wall += work.config.run.steps * _step_wall(seconds, gpus, shared=shared)
    held = wall * (sum(gpus.values()) - (gpus.get("rollout", 0.0) if shared else 0.0))
    return Cost(busy, held, wall)


def _step_wall(seconds: Mapping[str, float], gpus: Mapping[str, float], *, shared: bool) -> float:
    """Seconds of a step: generation and training run side by side, or in turns on shared GPUs."""
    engines, ranks = gpus.get("rollout", 0) or 1, gpus.get("learner", 0) or 1
    generating, learning = seconds["generation"] / engines, (seconds["training"] + seconds["scoring"]) / ranks
    together = (
        generating + learning if shared else max(generating, learning) + WAITING * min(generating, learning)
    )
    return together + seconds["evaluation"] / engines


def _step_flops(work: Work, shape: ModelShape, facts: DataFacts, assumed: Assumption) -> dict[str, float]:
    config = work.config
    answer = assumed.answer * config.data.max_response_tokens
    prompt = facts.prompt_tokens or assumed.prompt * config.data.max_prompt_tokens
    demonstration = facts.demonstration_tokens or assumed.demonstration * config.data.max_response_tokens
    prompts, n = config.prompts_per_step, work.num_rollouts
    rollout_sample, demonstration_sample = prompt + answer, prompt + demonstration
    gate = GATES[work.gate]
    rollouts = (1 - assumed.gated) * n if gate.either_or else n if gate.needs_rollouts else 0.0
    demonstrations = assumed.gated if gate.either_or else float(gate.needs_demonstrations)
    forward = prompts * (
        rollouts * rollout_sample * forward_flops(shape, rollout_sample)
        + demonstrations * demonstration_sample * forward_flops(shape, demonstration_sample)
    )
    passes = 4 if config.learner.gradient_checkpointing else 3
    one_answer = answer * forward_flops(shape, rollout_sample) + prompt * forward_flops(shape, prompt)
    evaluation = config.evaluation
    asked = sum(facts.evaluation_prompts.get(name, 0) for name in evaluation.sets) * evaluation.samples
    times = (config.run.steps // evaluation.every if evaluation.every else 1) + evaluation.before_training
    return {
        "generation": prompts * n * one_answer,
        "training": forward * passes * (2 if work.has_critic else 1),
        "scoring": forward * (work.scores + work.has_critic),
        "evaluation": asked * times * one_answer / max(config.run.steps, 1),
    }
