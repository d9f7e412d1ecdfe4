"""From a configuration to what a run needs before any actor starts: tokenizer, data, estimator, gate.

Nothing here touches Ray, so `--dry-run` does exactly this and stops. Everything that a user can get
wrong in data, model folder or algorithm is found here, before room on a cluster is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hpt_ray.config.schema import Config
from hpt_ray.data import mini
from hpt_ray.data.intake import Demonstrations
from hpt_ray.data.questions import QuestionSet, load_questions
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError
from hpt_ray.estimators import Estimator, estimator_from_config
from hpt_ray.records import Question
from hpt_ray.reward.service import check_graders
from hpt_ray.reward.terms import check_terms

# What becomes of a question whose demonstration is missing or does not fit.
DEMONSTRATIONS: dict[str, Demonstrations] = {
    "demonstrations": "required",
    "rollouts": "ignored",
    "switch": "optional",
    "both": "optional",
}


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start."""

    model_path: str
    questions: QuestionSet
    held_out: Mapping[str, Sequence[Question]]
    stop_token_ids: tuple[int, ...]
    estimator: Estimator
    gate: str
    num_rollouts: int  # of a question
    dropped: dict[str, int]  # rows of the training files that are not used, by reason


def prepare(config: Config, model_path: str) -> Prepared:
    """Load the data and make the algorithm. `model_path` is where the tokenizer is read.

    Raises `UserError` for everything that the user must change.
    """
    estimator = estimator_from_config(config.algorithm)
    gate = estimator.gate if config.selection.gate == "auto" else config.selection.gate
    check_algorithm(config, estimator, gate)
    check_graders(config.reward)
    check_terms(config.reward, config.data.max_response_tokens)
    template = Template(
        config.data, load_tokenizer(model_path, trust_remote_code=config.model.trust_remote_code)
    )
    load = partial(
        load_questions,
        template=template,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=config.data.max_response_tokens,
    )
    questions = load(config.data.train, demonstrations=DEMONSTRATIONS[gate])
    held_out = {}
    for name, path in config.evaluation.sets.items():
        found = load([path], demonstrations="optional")
        held_out[name] = [found[i] for i in range(len(found))]
    return Prepared(
        model_path=model_path,
        questions=questions,
        held_out=held_out,
        stop_token_ids=template.stop_token_ids,
        estimator=estimator,
        gate=gate,
        # Where demonstrations train whatever the rollouts say, none are sampled.
        num_rollouts=0 if gate == "demonstrations" else estimator.num_rollouts(config.rollouts_per_question),
        dropped=questions.dropped,
    )


def check_algorithm(config: Config, estimator: Estimator, gate: str) -> None:
    """Whether the algorithm, the gate and the three sizes go together."""
    if gate != "demonstrations" and estimator.num_rollouts(config.rollouts_per_question) < 1:
        raise UserError(
            f"algorithm.name={estimator.name} trains on rollouts, but rollouts_per_question="
            f"{config.rollouts_per_question}: raise it, or use algorithm.name=sft."
        )
    if config.rollout.max_staleness and not estimator.corrects_staleness:
        raise UserError(
            f"rollout.max_staleness is {config.rollout.max_staleness}, but algorithm.name={estimator.name} does "
            "not weigh rollouts by π_θ/π_old: set algorithm.rollout_denominator=old, or algorithm.correction "
            "(e.g. token_truncate), or rollout.max_staleness=0."
        )
    if estimator.needs_values and config.critic.num_gpus > 1:
        raise UserError(
            f"critic.num_gpus is {config.critic.num_gpus:g}, but one rank uses at most one GPU: set it to 1 "
            "and raise critic.num_ranks."
        )


def tokenizer_path(model_path: str) -> str:
    """Where the tokenizer of `model.path` is, also before the small task's base has been built."""
    return str(mini.resolve("mini:tokenizer")) if mini.is_mini(model_path) else model_path
