"""Rules that concern more than one key, or more than the schema can say about one.

Each rule is a small function: a `Config` in, a sentence that says what to change out, or None where the
rule holds. `check_config` runs all of `RULES` and raises what is wrong as one `UserError`. Nothing here
touches a file, a model or the cluster, or knows which algorithms, gates and trackers there are; what depends on
those is checked in `hpt_ray.driver.setup`, or where it is read.
"""

from __future__ import annotations

from collections.abc import Callable

from hpt_ray.config.phases import phases_of
from hpt_ray.config.placement import PLACEMENT_RULES
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError

Rule = Callable[[Config], str | None]


def check_config(config: Config) -> None:
    """Raise a `UserError` with one line for every rule that `config` breaks, in any of its phases."""
    phases = phases_of(config)
    problems = [
        f"phase {phase.number}: {problem}" if len(phases) > 1 else problem
        for phase in phases
        for rule in RULES
        if (problem := rule(phase.config)) is not None
    ]
    if problems:
        raise UserError("\n".join(problems))


def prompts_divide_into_updates(config: Config) -> str | None:
    prompts, updates = config.prompts_per_step, config.updates_per_step
    if prompts % updates == 0:
        return None
    return (
        f"`prompts_per_step` ({prompts}) must be a multiple of `updates_per_step` ({updates}); "
        f"the nearest is {max(1, round(prompts / updates)) * updates}."
    )


def sample_fits_into_micro_batch(config: Config) -> str | None:
    sample = config.data.max_prompt_tokens + config.data.max_response_tokens
    if sample <= config.max_tokens_per_micro_batch:
        return None
    return (
        f"A sample may have {sample} tokens (`data.max_prompt_tokens` + `data.max_response_tokens`) and must fit "
        f"into one micro-batch: raise `max_tokens_per_micro_batch` ({config.max_tokens_per_micro_batch}) to "
        f"{sample}, or lower the limits."
    )


def sample_fits_into_engine(config: Config) -> str | None:
    sample = config.data.max_prompt_tokens + config.data.max_response_tokens
    limit = config.rollout.engine.get("max_model_len", sample)
    if isinstance(limit, int) and limit >= sample:
        return None
    return (
        f"`rollout.engine.max_model_len` is {limit!r}, but prompt and response may have {sample} tokens "
        "together: raise it, leave it out, or lower `data.max_prompt_tokens` or `data.max_response_tokens`."
    )


def training_has_data(config: Config) -> str | None:
    if config.run.steps == 0 or config.data.train:
        return None
    return "`data.train` is empty: name at least one file of prompts, or set `run.steps` to 0."


def gamma_is_a_share(config: Config) -> str | None:
    if -1 <= config.selection.gamma <= 1:
        return None
    return (
        f"`selection.gamma` is {config.selection.gamma:g}, but it is compared with a share of solved "
        "rollouts: use a value from 0 to 1, or -1 for no demonstrations."
    )


def rollouts_of_a_prompt_differ(config: Config) -> str | None:
    if config.rollout.temperature > 0 or config.group_size <= 1:
        return None
    return (
        f"`rollout.temperature` is 0, so all {config.group_size} rollouts of a prompt would be "
        "the same: raise it, or set `group_size` to 1."
    )


def evaluation_samples_differ(config: Config) -> str | None:
    if config.evaluation.temperature > 0 or config.evaluation.samples == 1:
        return None
    return (
        f"`evaluation.temperature` is 0, so all {config.evaluation.samples} samples of a prompt would be "
        "the same: raise it, or set `evaluation.samples` to 1."
    )


def evaluation_has_sets(config: Config) -> str | None:
    if config.evaluation.sets or config.evaluation.every == 0:
        return None
    return "`evaluation.every` is set, but `evaluation.sets` is empty: name a set, or set `every` to 0."


def best_of_is_a_set(config: Config) -> str | None:
    name = config.checkpoint.best_of
    if name is None:
        return None
    if name not in config.evaluation.sets:
        return f"`checkpoint.best_of` is {name}, which is no set of `evaluation.sets`: name one of them."
    if config.evaluation.every == 0:
        return "`checkpoint.best_of` needs evaluations to choose from: set `evaluation.every`."
    if config.evaluation.sets[name].startswith("mini:test/"):
        return f"`checkpoint.best_of` is {name}, a test set: choose on a validation set."
    return None


def shares_are_shares(config: Config) -> str | None:
    shares = {
        "rollout.top_p": config.rollout.top_p,
        "rollout.gpu_memory_utilization": config.rollout.gpu_memory_utilization,
        "evaluation.top_p": config.evaluation.top_p,
    }
    wrong = [f"`{name}` ({value:g})" for name, value in shares.items() if not 0 < value <= 1]
    return f"{' and '.join(wrong)} must be above 0 and at most 1." if wrong else None


def top_k_is_a_count(config: Config) -> str | None:
    if config.rollout.top_k == -1 or config.rollout.top_k >= 1:
        return None
    return f"`rollout.top_k` is {config.rollout.top_k}: use 1 or more, or -1 for all tokens."


def betas_are_a_pair(config: Config) -> str | None:
    betas = config.learner.betas
    if len(betas) == 2 and all(0 <= beta < 1 for beta in betas):
        return None
    return f"`learner.betas` is {betas}: give two numbers from 0 to below 1, such as [0.9, 0.999]."


def schedule_goes_down(config: Config) -> str | None:
    if config.learner.min_lr_ratio <= 1:
        return None
    return (
        f"`learner.min_lr_ratio` is {config.learner.min_lr_ratio:g}: it is the last learning rate over the "
        "peak, at most 1."
    )


def zero_stage_exists(config: Config) -> str | None:
    if 0 <= config.learner.zero_stage <= 3:
        return None
    return f"`learner.zero_stage` is {config.learner.zero_stage}: DeepSpeed has the stages 0, 1, 2 and 3."


def offload_needs_zero(config: Config) -> str | None:
    if not config.learner.offload_optimizer or config.learner.zero_stage >= 1:
        return None
    return "`learner.offload_optimizer` needs ZeRO: set `learner.zero_stage` to 1, 2 or 3, or switch it off."


def correction_has_a_sampler(config: Config) -> str | None:
    if config.algorithm.correction == "none" or not config.learner.recompute_old_logprobs:
        return None
    return (
        "`algorithm.correction` bounds how far the learner is from the sampler, but with "
        "`learner.recompute_old_logprobs` log π_old is the learner's own: use one of the two."
    )


def rank_has_one_gpu(config: Config) -> str | None:
    if config.learner.num_gpus <= 1:
        return None
    return (
        f"`learner.num_gpus` is {config.learner.num_gpus:g}, but one rank uses at most one GPU: set it to 1 "
        "and raise `learner.num_ranks`."
    )


def engine_has_its_gpus(config: Config) -> str | None:
    gpus, wanted = config.rollout.num_gpus, config.rollout.tensor_parallel
    if gpus == 0 or wanted == 1 or gpus == wanted:
        return None
    return (
        f"`rollout.tensor_parallel` is {wanted}, but one worker reserves {gpus:g} GPUs: set "
        f"`rollout.num_gpus` to {wanted}."
    )


def nccl_needs_gpus(config: Config) -> str | None:
    if config.weight_sync.backend != "nccl" or (config.rollout.num_gpus > 0 and config.learner.num_gpus > 0):
        return None
    return (
        "`weight_sync.backend` is `nccl`, which sends between GPUs: give GPUs to both sides "
        "(`rollout.num_gpus`, `learner.num_gpus`), or set the backend to `auto`."
    )


RULES: list[Rule] = [
    prompts_divide_into_updates,
    sample_fits_into_micro_batch,
    sample_fits_into_engine,
    training_has_data,
    gamma_is_a_share,
    rollouts_of_a_prompt_differ,
    evaluation_samples_differ,
    evaluation_has_sets,
    best_of_is_a_set,
    shares_are_shares,
    top_k_is_a_count,
    betas_are_a_pair,
    schedule_goes_down,
    zero_stage_exists,
    offload_needs_zero,
    correction_has_a_sampler,
    rank_has_one_gpu,
    engine_has_its_gpus,
    nccl_needs_gpus,
    *PLACEMENT_RULES,
]
