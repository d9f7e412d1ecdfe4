"""From a configuration to what a run needs before any actor starts: tokenizer, data, estimator, gate.

Nothing here touches Ray, so `--dry-run` does exactly this and stops. Everything that a user can get
wrong in data, model folder or algorithm is found here, before room on a cluster is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from hpt_ray.algorithms import GATES, Estimator, estimator_from_config
from hpt_ray.algorithms.rehearsal import rehearsal_of
from hpt_ray.algorithms.trial import may_ask, try_parts
from hpt_ray.checkpoint.mirror import check_mirror
from hpt_ray.config.phases import Phase, phases_of
from hpt_ray.config.schema import Config
from hpt_ray.data.dataset import PromptSet, load_prompts
from hpt_ray.data.dropped import in_words
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.data.model_folder import check_model_folders
from hpt_ray.data.sampler import Sampler
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError
from hpt_ray.learner.scoring import kl_in_reward
from hpt_ray.observe.run_folder import check_run_dir, check_run_folder
from hpt_ray.observe.trackers import check_trackers
from hpt_ray.reward.functions.table import ground_truths_of
from hpt_ray.reward.service import check_reward_functions, check_terms
from hpt_ray.types import Prompt, Sample
from hpt_ray.weight_sync.backends import backend_of

# What `load_prompts` must ask of the rows of `data.rehearsal`.
ASKED_OF_REHEARSAL: dict[str, Any] = {"demonstrations": "required", "needs_ground_truth": False}


@dataclass(frozen=True)
class PreparedPhase(Phase):
    """A phase that is ready to start."""

    prompts: PromptSet
    estimator: Estimator
    gate: str
    num_rollouts: int  # of a prompt
    rehearsal: PromptSet | None = None  # what trains beside the prompts

    def rehearsed(self, step: int, update: int) -> list[Sample]:
        """What the `update`-th optimizer step (from 0) of `step` (from 1) rehearses.

        As its learning rate it follows from the step, so a resumed run goes on with the same rows.
        """
        if self.rehearsal is None:
            return []
        updates = self.config.updates_per_step
        rows = self.config.data.rehearsal_per_step // updates
        self._rehearsal_sampler.move_to(((step - self.before - 1) * updates + update) * rows)
        return rehearsal_of([self.rehearsal[i] for i in self._rehearsal_sampler.next_batch(rows)])

    @cached_property
    def _rehearsal_sampler(self) -> Sampler:
        """Kept for the order of its epoch; where it draws is said each time."""
        assert self.rehearsal is not None, "nothing to rehearse"
        config = self.config
        return Sampler(len(self.rehearsal), seed=config.run.seed, shuffle=config.data.shuffle)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start."""

    model_path: str
    template: Template
    eval_sets: Mapping[str, Sequence[Prompt]]
    eval_reports: Mapping[str, Mapping[str, int | float]]  # `PromptSet.report` of the same
    phases: Sequence[PreparedPhase]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self.template.stop_token_ids

    @property
    def turn_end(self) -> str:
        """The same for people."""
        return self.template.turn_end

    def phase_of(self, step: int) -> PreparedPhase:
        """The phase that `step` (from 1) belongs to; of steps after the last, the last."""
        return next((phase for phase in self.phases if step <= phase.last), self.phases[-1])

    @property
    def dropped(self) -> dict[str, int]:
        """Rows of the training files that are not used, by reason, and by phase and file where these differ."""
        found: dict[str, int] = {}
        for phase in self.phases:
            where = f"phase {phase.number}" if len(self.phases) > 1 else ""
            for prompts, what in ((phase.prompts, where), (phase.rehearsal, f"{where} rehearsal".strip())):
                dropped = prompts.dropped if prompts else {}
                found |= {reason + (f" ({what})" if what else ""): count for reason, count in dropped.items()}
        return found


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
    if any(estimator.needs_teacher for _, estimator, _, _ in chosen):
        check_teacher(config, model_path)
    phases = []
    for phase, estimator, gate, num_rollouts in chosen:
        prompts = load(phase.config.data.train, **asked_of(phase.config, gate))
        check_demonstrations(phase.config, gate, num_rollouts, prompts)
        files = phase.config.data.rehearsal
        rehearsal = load(files, **ASKED_OF_REHEARSAL) if files else None
        phases.append(
            PreparedPhase(
                **vars(phase),
                prompts=prompts,
                estimator=estimator,
                gate=gate,
                num_rollouts=num_rollouts,
                rehearsal=rehearsal,
            )
        )
    eval_sets = {
        name: load([path], **asked_of(config, None)) for name, path in config.evaluation.sets.items()
    }
    return Prepared(
        model_path,
        template,
        {name: list(prompts) for name, prompts in eval_sets.items()},
        {name: prompts.report() for name, prompts in eval_sets.items()},
        phases,
    )


def check_choices(config: Config) -> list[tuple[Phase, Estimator, str, int]]:
    """What needs neither data nor tokenizer: for each phase its `choose_algorithm`.

    Reward functions, extra rewards and trackers exist, and a model folder that is on this machine is whole.
    Raises `UserError` for what the user must change.
    """
    chosen = choices_of(config)
    check_model_folders(config)
    check_reward_functions(config.reward)
    check_terms(config.reward, config.data.max_response_tokens)
    check_trackers(config.observe.trackers)
    check_folders(config)
    return chosen


def check_folders(config: Config) -> None:
    """What the run reads first and writes to. Raises `UserError`."""
    check_run_dir(config.run.dir)
    if config.resume not in ("never", "auto"):
        check_run_folder(config.resume)
    if config.checkpoint.mirror is not None:
        check_mirror(config.checkpoint.mirror)


def choices_of(config: Config) -> list[tuple[Phase, Estimator, str, int]]:
    """For each phase its `choose_algorithm`, where the backend of weight sync fits too.

    A `UserError` says which of several phases it is about.
    """
    backend_of(config)
    phases, chosen = phases_of(config), []
    for phase in phases:
        try:
            chosen.append((phase, *choose_algorithm(phase)))
        except UserError as error:
            raise UserError(f"phase {phase.number}: {error}" if len(phases) > 1 else str(error)) from error
    return chosen


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
        columns=config.data.columns,
    )
    return template, load


def check_teacher(config: Config, model_path: str) -> None:
    """Raise `UserError` where the teacher, `reference.path`, has other tokens than the policy."""
    assert config.reference.path is not None
    try:
        teacher = load_tokenizer(tokenizer_path(config.reference.path)).get_vocab()
    except UserError as error:
        raise UserError(str(error).replace("model.path", "reference.path")) from error
    if teacher != load_tokenizer(model_path).get_vocab():
        raise UserError(
            f"reference.path={config.reference.path}: its tokenizer has other tokens than that of model.path="
            f"{config.model.path}, so it cannot say how likely the policy's are: name a model of the same family."
        )


def check_demonstrations(config: Config, gate: str, num_rollouts: int, prompts: PromptSet) -> None:
    """Raise UserError for a set without any demonstration where the gate would train on them."""
    tally, data = prompts.tally, config.data
    if tally.demonstrations or not may_ask(gate, config.selection.gamma, num_rollouts):
        return
    why = in_words(tally.demonstrations_left_out, tally, data.max_prompt_tokens, data.max_response_tokens)
    raise UserError(
        f"{', '.join(data.train)}: algorithm.name={config.algorithm.name} with gate {gate} trains on demonstrations, "
        f"and there is none left for the {tally.kept} prompts. {why} Rollouts alone train with algorithm.name=grpo."
    )


def asked_of(config: Config, gate: str | None) -> dict[str, Any]:
    """What `load_prompts` must ask of a file that this gate trains on, or that is evaluated on (None).

    A ground truth where responses are graded by a reward function that cannot do without.
    """
    functions = {config.reward.function, *config.reward.functions.values()}
    asked = ground_truths_of(functions)
    if gate is None:
        return asked | {"demonstrations": "optional", "held_out": True}
    kind = GATES[gate]
    needed = asked["needs_ground_truth"] and kind.needs_rollouts
    return asked | {"demonstrations": kind.demonstrations, "needs_ground_truth": needed}


def roles_of(config: Config) -> Roles:
    """Engines to train on rollouts or for eval sets; the others where an algorithm asks."""
    chosen = choices_of(config)
    return Roles(
        rollouts=bool(config.evaluation.sets) or any(num_rollouts for *_, num_rollouts in chosen),
        # A learner of adapters is its own reference with them off.
        reference=any(estimator.needs_reference for _, estimator, _, _ in chosen)
        and not is_own_reference(config),
        critic=any(estimator.needs_values for _, estimator, _, _ in chosen),
    )


def is_own_reference(config: Config) -> bool:
    """Whether the frozen policy is the learner's base, and no other model."""
    return bool(config.learner.lora.rank) and config.reference.path is None


def choose_algorithm(phase: Phase) -> tuple[Estimator, str, int]:
    """The estimator, the gate that `auto` stands for, and how many rollouts a prompt gets."""
    config = phase.config
    estimator = estimator_from_config(config.algorithm)
    if config.data.rehearsal_per_step:
        estimator = estimator.rehearsing()
    gate = config.selection.gate
    gate = estimator.gate if gate == "auto" else GATES.checked("selection.gate", gate, "auto")
    try_parts(estimator, gate, config.selection.gamma)
    check_algorithm(config, estimator, gate)
    if estimator.needs_reference and phase.before and config.reference.path is None:
        raise UserError(
            f"algorithm.kl_coef of phase {phase.number} asks for a frozen reference, which would be the model from "
            "before phase 1: name the model that is meant in reference.path."
        )
    if estimator.needs_teacher and config.reference.path is None:
        raise UserError(
            f"algorithm.name={estimator.name} learns from a teacher, and none is named: set reference.path to the "
            "folder of a model with the policy's tokenizer."
        )
    num_rollouts = estimator.num_rollouts(config.group_size) if GATES[gate].needs_rollouts else 0
    return estimator, gate, num_rollouts


def check_algorithm(config: Config, estimator: Estimator, gate: str) -> None:
    """Whether the algorithm, the gate and the three sizes go together."""
    kind, num_rollouts = GATES[gate], estimator.num_rollouts(config.group_size)
    if kind.needs_rollouts and num_rollouts < 1:
        raise UserError(
            f"algorithm.name={estimator.name} with gate {gate} trains on rollouts, but group_size="
            f"{config.group_size}: raise it, or use algorithm.name=sft or selection.gate=demonstrations."
        )
    if kind.needs_rollouts and num_rollouts == 1 and estimator.compares_rollouts:
        raise UserError(
            f"group_size={config.group_size}: algorithm.name={estimator.name} compares the rollouts of a prompt with "
            "each other, so that the advantage of a single one is always 0 and nothing would be learned from it. "
            "Set group_size to 2 or more (8 is usual), or take algorithm.name=reinforce."
        )
    compares = estimator.compares_rollouts and estimator.prefixes is None
    if config.selection.max_num_gen_batches > 1 and kind.needs_rollouts and not compares:
        raise UserError(
            f"selection.max_num_gen_batches={config.selection.max_num_gen_batches} replaces prompts whose rollouts all "
            f"have the same reward, but algorithm.name={estimator.name} with gate {gate} trains on those too: leave it "
            "at 1, or take an algorithm that compares the rollouts of a prompt, such as grpo, dapo or hpt."
        )
    if kind.wrong_gamma and (problem := kind.wrong_gamma(config.selection.gamma, num_rollouts)):
        raise UserError(f"selection.gamma={config.selection.gamma:g} with gate {gate}: {problem}.")
    if kind.prefixes != (estimator.prefixes is not None):
        raise UserError(
            f"selection.gate={gate} with algorithm.name={estimator.name}: rollouts continue prefixes of demonstrations "
            "with both the gate prefixes and an algorithm such as prefix_rft or bread, or not at all; set "
            "selection.gate=auto."
        )
    if estimator.compares_with_demonstration and (kind.by_results or not kind.needs_rollouts):
        raise UserError(
            f"algorithm.name={estimator.name} compares rollouts with their demonstration, but selection.gate={gate} "
            "leaves one of them out of some prompts: set selection.gate to auto or both."
        )
    if config.rollout.max_off_policy_steps and not estimator.corrects_off_policy:
        raise UserError(
            f"rollout.max_off_policy_steps is {config.rollout.max_off_policy_steps}, but "
            f"algorithm.name={estimator.name} does not weigh rollouts by π_θ/π_old: set "
            "algorithm.rollout_denominator=old, or algorithm.correction (e.g. token_truncate), or "
            "rollout.max_off_policy_steps=0."
        )
    if config.rollout.max_off_policy_steps and config.run.deterministic and estimator.searches_prefixes:
        raise UserError(
            f"run.deterministic with rollout.max_off_policy_steps={config.rollout.max_off_policy_steps}: "
            f"algorithm.name={estimator.name} draws prompts again while those of a later step are drawn, in an order "
            "that no two runs share; set rollout.max_off_policy_steps=0."
        )
    weighs = estimator.corrects_off_policy and not config.learner.recompute_old_logprobs
    if config.rollout.is_cut and kind.needs_rollouts and weighs:
        raise UserError(
            f"rollout.top_p={config.rollout.top_p:g} with rollout.top_k={config.rollout.top_k} cuts the distribution "
            f"that rollouts come from, and the learner's stays whole: algorithm.name={estimator.name} would weigh "
            "every token by the share that was left. Set rollout.top_p=1 and rollout.top_k=-1 (a temperature is "
            "accounted for), or learner.recompute_old_logprobs=true."
        )
    ranks, critics = config.learner.num_ranks, config.critic.num_ranks
    if is_own_reference(config) and kl_in_reward(estimator) and estimator.needs_values and ranks != critics:
        raise UserError(
            f"with learner.lora the ranks score the KL in the reward beside the critic: set critic.num_ranks "
            f"({critics}) to learner.num_ranks ({ranks}), algorithm.kl_in=loss, or a reference.path."
        )
    if estimator.needs_values and critics % (sharing := config.learner.sequence_parallel):
        raise UserError(
            f"critic.num_ranks ({critics}) must be a multiple of learner.sequence_parallel ({sharing}): so many of "
            "them share each micro-batch, as the learner's ranks do."
        )
    if estimator.needs_values and config.critic.num_gpus > 1:
        raise UserError(
            f"critic.num_gpus is {config.critic.num_gpus:g}, but one rank uses at most one GPU: set it to 1 "
            "and raise critic.num_ranks."
        )
