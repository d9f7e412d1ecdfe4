"""What a run will cost, in GPU hours: floating-point operations over stated utilisations.

In: the phases of a run, a `ModelShape`, what is known of the data. Out: a `Cost` for three assumptions: the
lengths of responses, how many prompts the gate gives to demonstrations, and how much of a GPU's peak each kind
of work gets are not known before a run, so the cost is a range and never a promise.

Operations of one token: 2·P to read it, P without an input embedding and the experts it does not go to, and
2·layers·width·length for attention to half a sample on average; training takes three times that, once less where only
adapters train, and once more where activations are recomputed.

Against what was published (LUFFY's README, 7B, 64k prompts, A100 of 80 GB, GPU hours): LUFFY 77·8 = 616, RL
with an SFT loss 133·8 = 1064, SFT then RL 130·8 = 1040, SFT 24·8 = 192. docs/paper.md has ours beside them.
`PEAK` is that GPU's; an H100 takes about half the hours. Not counted: start-up, checkpoints, waiting for rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpt_ray.algorithms import Estimator
from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.phases import phases_of
from hpt_ray.config.schema import Config
from hpt_ray.driver.setup import choose_algorithm
from hpt_ray.tools.plan.shape import ModelShape

PEAK = 312e12  # bfloat16 operations a second of one A100 or A800
FURTHER_DRAWS = 2  # of a prompt that no rollout solves, where a prefix is searched for: 0 to 4
WAITING = 0.3  # of the shorter of generation and training does not run beside the longer


@dataclass(frozen=True, slots=True)
class Assumption:
    """What is not known before a run. Shares are of a limit or of all prompts, utilisations of `PEAK`."""

    response: float  # mean response / data.max_response_tokens (paper, Fig 7: 1000 to 6000 of 8192)
    prompt: float  # mean prompt / data.max_prompt_tokens
    demonstration: float  # mean demonstration / data.max_response_tokens (OpenR1-46k: 4.2k of 8192)
    gated: float  # prompts that a gate gives to their demonstration (paper, Fig 6)
    generation: float
    training: float
    scoring: float

    @property
    def evaluation(self) -> float:
        return self.generation


LEAST = Assumption(0.15, 0.1, 0.5, 0.4, generation=0.15, training=0.45, scoring=0.5)
EXPECTED = Assumption(0.3, 0.15, 0.5, 0.25, generation=0.1, training=0.35, scoring=0.4)
MOST = Assumption(0.6, 0.3, 0.5, 0.1, generation=0.05, training=0.25, scoring=0.3)


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
    product = 2 * (shape.num_parameters - shape.num_embedding - shape.num_idle)
    return product + 2 * shape.num_layers * shape.query_width * sample_tokens


def costs_of(
    config: Config, shape: ModelShape, gpus: Mapping[str, float], facts: DataFacts
) -> tuple[Cost, Cost, Cost]:
    """The least, the expected and the most that all phases cost. `gpus`: how many each actor group has."""
    phases = [(phase.config, *choose_algorithm(phase)) for phase in phases_of(config)]
    shared = config.cluster.colocate  # engines and ranks have the same GPUs

    def cost(assumed: Assumption) -> Cost:
        busy: dict[str, float] = {}
        wall = 0.0
        for phase in phases:
            steps, flops = phase[0].run.steps, step_flops(*phase, shape, facts, assumed)
            seconds = {kind: amount / (PEAK * getattr(assumed, kind)) for kind, amount in flops.items()}
            for kind, amount in seconds.items():
                busy[kind] = busy.get(kind, 0.0) + amount * steps
            wall += steps * _step_wall(seconds, gpus, shared=shared)
        held = wall * (sum(gpus.values()) - (gpus.get("rollout", 0.0) if shared else 0.0))
        return Cost(busy, held, wall)

    return cost(LEAST), cost(EXPECTED), cost(MOST)


def sampling_costs(
    shape: ModelShape, responses: Mapping[int, float], max_prompt_tokens: int, num_gpus: int
) -> tuple[Cost, Cost, Cost]:
    """An evaluation of `responses`, how many by the limit of their tokens, on engines that stay busy."""

    def cost(assumed: Assumption) -> Cost:
        prompt = assumed.prompt * max_prompt_tokens
        flops = sum(
            count * _generate_flops(shape, prompt, assumed.response * limit)
            for limit, count in responses.items()
        )
        held = flops / (PEAK * assumed.evaluation)
        return Cost({"evaluation": held}, held, held / num_gpus)

    return cost(LEAST), cost(EXPECTED), cost(MOST)


def _generate_flops(shape: ModelShape, prompt: float, response: float) -> float:
    """Operations of one response."""
    return response * forward_flops(shape, prompt + response) + prompt * forward_flops(shape, prompt)


def _step_wall(seconds: Mapping[str, float], gpus: Mapping[str, float], *, shared: bool) -> float:
    """Seconds of a step: generation and training run side by side, or in turns on shared GPUs."""
    engines, ranks = gpus.get("rollout", 0) or 1, gpus.get("learner", 0) or 1
    generating, learning = seconds["generation"] / engines, (seconds["training"] + seconds["scoring"]) / ranks
    waiting = 1.0 if shared else WAITING
    together = max(generating, learning) + waiting * min(generating, learning)
    return together + seconds["evaluation"] / engines


def samples_of(
    config: Config, gate: str, num_rollouts: int, facts: DataFacts, assumed: Assumption
) -> tuple[float, float, tuple[tuple[float, float], ...]]:
    """Mean tokens of a prompt and of a response; and of each prompt, how many samples of how many tokens train."""
    response = assumed.response * config.data.max_response_tokens
    prompt = facts.prompt_tokens or assumed.prompt * config.data.max_prompt_tokens
    demonstration = facts.demonstration_tokens or assumed.demonstration * config.data.max_response_tokens
    rule = GATES[gate]
    rollouts = (1 - assumed.gated) * num_rollouts if rule.either_or else num_rollouts * rule.needs_rollouts
    demonstrations = assumed.gated if rule.either_or else float(rule.needs_demonstrations)
    rehearsed = config.data.rehearsal_per_step / config.prompts_per_step
    return (
        prompt,
        response,
        ((rollouts, prompt + response), (demonstrations + rehearsed, prompt + demonstration)),
    )


def rollouts_drawn(estimator: Estimator, num_rollouts: int, assumed: Assumption) -> float:
    """Of one prompt, those that are superseded included."""
    return num_rollouts * (1 + FURTHER_DRAWS * assumed.gated * estimator.searches_prefixes)


def step_flops(
    config: Config,
    estimator: Estimator,
    gate: str,
    num_rollouts: int,
    shape: ModelShape,
    facts: DataFacts,
    assumed: Assumption,
) -> dict[str, float]:
    """Operations of one step of a phase, by kind of work, as its gate and its estimator shape it."""
    prompt, response, samples = samples_of(config, gate, num_rollouts, facts, assumed)
    forward = config.prompts_per_step * sum(
        count * tokens * forward_flops(shape, tokens) for count, tokens in samples
    )
    passes = 3 + config.learner.gradient_checkpointing - bool(config.learner.lora.rank)
    # Forward passes beside the training one: frozen reference, old logprobs, values.
    scores = estimator.needs_reference + config.learner.recompute_old_logprobs + estimator.needs_values
    generate = _generate_flops(shape, prompt, response)
    evaluation = config.evaluation
    responses = sum(facts.evaluation_prompts.get(name, 0) for name in evaluation.sets) * evaluation.samples
    times = (config.run.steps // evaluation.every if evaluation.every else 1) + evaluation.before_training
    return {
        "generation": config.prompts_per_step * rollouts_drawn(estimator, num_rollouts, assumed) * generate,
        "training": forward * passes * (2 if estimator.needs_values else 1),
        "scoring": forward * scores,
        "evaluation": responses * times * generate / max(config.run.steps, 1),
    }
