"""From a configuration to what a run needs before any actor starts: tokenizer, data, estimator, gate.

Nothing here touches Ray, so `--dry-run` does exactly this and stops. Everything that a user can get
wrong in data, model folder or algorithm is found here, before room on a cluster is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import attrgetter

from hpt_ray.algorithms import Estimator, estimator_from_config
from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.load import not_one_of
from hpt_ray.config.phases import Phase, phases_of
from hpt_ray.config.schema import Config
from hpt_ray.data.dataset import PromptSet, load_prompts
from hpt_ray.data.intake import Demonstrations
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError
from hpt_ray.learner.model import check_weights
from hpt_ray.observe.trackers import TRACKERS
from hpt_ray.reward.service import check_reward_functions
from hpt_ray.reward.terms import check_terms
from hpt_ray.types import Prompt

BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class PreparedPhase(Phase):
    """A phase that is ready to start."""

    prompts: PromptSet
    estimator: Estimator
    gate: str
    num_rollouts: int  # of a prompt


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start."""

    model_path: str
    eval_sets: Mapping[str, Sequence[Prompt]]
    stop_token_ids: tuple[int, ...]
    phases: Sequence[PreparedPhase]

    def phase_of(self, step: int) -> PreparedPhase:
        """The phase that `step` (from 1) belongs to; of steps after the last, the last."""
        return next((phase for phase in self.phases if step <= phase.last), self.phases[-1])

    @property
    def dropped(self) -> dict[str, int]:
        """Rows of the training files that are not used, by reason; where there are phases, also by phase."""
        if len(self.phases) == 1:
            return self.phases[0].prompts.dropped
        return {
            f"{reason} (phase {phase.number})": count
            for phase in self.phases
            for reason, count in phase.prompts.dropped.items()
        }


@dataclass(frozen=True)
class Roles:
    """Which actors a run has beside its learner ranks: those that any of its phases asks for."""

    rollouts: bool
    reference: bool
    critic: bool


def prepare(config: Config, model_path: str) -> Prepared:
    """Load the data and make the algorithm of every phase. `model_path` is where the tokenizer is read.

    Raises `UserError` for everything that the user must change.
    """
    chosen = check_choices(config)
    template, load = loader(config, model_path)
    phases = [
        PreparedPhase(
            **vars(phase),
            prompts=load(phase.config.data.train, demonstrations=demonstrations_of(gate)),
            estimator=estimator,
            gate=gate,
            num_rollouts=num_rollouts,
        )
        for phase, estimator, gate, num_rollouts in chosen
    ]
    eval_sets = {}
    for name, path in config.evaluation.sets.items():
        found = load([path], demonstrations="optional")
        eval_sets[name] = [found[i] for i in range(len(found))]
    return Prepared(model_path, eval_sets, template.stop_token_ids, phases)


def check_choices(config: Config) -> list[tuple[Phase, Estimator, str, int]]:
    """What needs neither data nor tokenizer: for each phase its `choose_algorithm`.

    Reward functions and extra rewards exist, and a model folder that is on this machine has weights. Raises
    `UserError` for what the user must change.
    """
    chosen = [(phase, *choose_algorithm(phase)) for phase in phases_of(config)]
    check_weights(config.model)
    check_reward_functions(config.reward)
    check_terms(config.reward, config.data.max_response_tokens)
    return chosen


def check_names(config: Config) -> None:
    """Refuse gates, trackers and backends that no table has; more of them may be there than the schema knows."""
    tables = {
        "selection.gate": ("auto", *GATES),
        "observe.trackers": TRACKERS,
        "weight_sync.backend": ("auto", *BACKENDS),
    }
    for phase, (key, table) in product(phases_of(config), tables.items()):
        value = attrgetter(key)(phase.config)
        for name in [value] if isinstance(value, str) else value:
            if problem := not_one_of(key, name, table):
                raise UserError(problem)


def demonstrations_of(gate: str) -> Demonstrations:
    """What becomes of a prompt whose demonstration is missing or does not fit."""
    special: dict[str, Demonstrations] = {"demonstrations": "required", "rollouts": "ignored"}
    return special.get(gate, "optional")


def loader(config: Config, model_path: str) -> tuple[Template, Callable[..., PromptSet]]:
    """How prompts become tokens, and `load_prompts` with it. Raises `UserError`."""
    template = Template(
        config.data, load_tokenizer(model_path, trust_remote_code=config.model.trust_remote_code)
    )
    load = partial(
        load_prompts,
        template=template,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=config.data.max_response_tokens,
    )
    return template, load


def roles_of(config: Config) -> Roles:
    """Engines to train on rollouts or for eval sets; the others where an algorithm asks."""
    chosen = [choose_algorithm(phase) for phase in phases_of(config)]
    return Roles(
        rollouts=bool(config.evaluation.sets) or any(num_rollouts for _, _, num_rollouts in chosen),
        reference=any(estimator.needs_reference for estimator, _, _ in chosen),
        critic=any(estimator.needs_values for estimator, _, _ in chosen),
    )


def choose_algorithm(phase: Phase) -> tuple[Estimator, str, int]:
    """The estimator, the gate that `auto` stands for, and how many rollouts a prompt gets.

    Raises `UserError` with a line for each reason why the algorithm, the gate and the rest do not go together.
    """
    config = phase.config
    check_names(config)
    estimator = estimator_from_config(config.algorithm)
    gate = estimator.gate if config.selection.gate == "auto" else config.selection.gate
    if problems := list(_does_not_fit(phase, estimator, gate)):
        raise UserError("\n".join(problems))
    # Where demonstrations train whatever the rollouts say, none are sampled.
    num_rollouts = 0 if gate == "demonstrations" else estimator.num_rollouts(config.group_size)
    return estimator, gate, num_rollouts


def _does_not_fit(phase: Phase, estimator: Estimator, gate: str) -> Iterator[str]:
    config, name = phase.config, f"algorithm.name={estimator.name}"
    if gate != "demonstrations" and estimator.num_rollouts(config.group_size) < 1:
        yield (
            f"{name} trains on rollouts, but group_size={config.group_size}: raise it, or use algorithm.name=sft."
        )
    if estimator.compares_with_demonstration and gate not in ("both", "rollouts"):
        yield (
            f"{name} compares rollouts with their demonstration, but selection.gate={gate} leaves one of them out "
            "of some prompts: set selection.gate to auto or both."
        )
    if config.rollout.max_off_policy_steps and not estimator.corrects_off_policy:
        yield (
            f"rollout.max_off_policy_steps is {config.rollout.max_off_policy_steps}, but {name} does not weigh "
            "rollouts by π_θ/π_old: set algorithm.rollout_denominator=old, or algorithm.correction (e.g. "
            "token_truncate), or rollout.max_off_policy_steps=0."
        )
    if estimator.needs_values and config.critic.num_gpus > 1:
        yield (
            f"critic.num_gpus is {config.critic.num_gpus:g}, but one rank uses at most one GPU: set it to 1 and "
            "raise critic.num_ranks."
        )
    if estimator.needs_reference and phase.before and config.reference.path is None:
        yield (
            f"algorithm.kl_coef of phase {phase.number} asks for a frozen reference, which would be the model from "
            "before phase 1: name the model that is meant in reference.path."
        )
