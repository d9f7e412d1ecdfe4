"""Rules that concern more than one key, or more than the schema can say about one.

Each function of `RULES` takes a `Config` and yields, for every rule of its topic that is broken, a sentence
that says what to change. `check_config` runs them all and raises what is wrong as one `UserError`. Nothing
here touches a file, a model or the cluster, or knows which algorithms, gates, trackers and backends there are;
what depends on those is checked in `hpt_ray.driver.setup`, or where it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from hpt_ray.config.phases import phases_of
from hpt_ray.config.schema import ClusterConfig, Config
from hpt_ray.errors import UserError

NAME_BYTES = 200  # of a run, of 255 that a file system takes; the time and a number follow
ACTOR_GROUPS = ("learner", "critic", "rollout", "verifier", "reference")
NOT_A_POOL = ("", "CPU", "GPU", "memory", "object_store_memory")
# vLLM's arguments that would spread one engine over nodes or change how many processes it has → the value
# that is left.
ONE_NODE = {
    "tensor_parallel_size": None,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "nnodes": 1,
    "distributed_executor_backend": "mp",
}


def check_config(config: Config) -> None:
    """Raise a `UserError` with one line for every rule that `config` breaks, in any of its phases."""
    phases = phases_of(config)
    problems = [*naming(config.run.name)]
    problems += [
        f"phase {phase.number}: {problem}" if len(phases) > 1 else problem
        for phase in phases
        for problem in broken_rules(phase.config)
    ]
    if problems:
        raise UserError("\n".join(problems))


def broken_rules(config: Config) -> list[str]:
    """What is wrong with a configuration without phases, rule by rule."""
    return [problem for rules in RULES for problem in rules(config)]


def naming(name: str) -> Iterator[str]:
    """What is wrong with `run.name`: it begins the name of a folder, and of what a cluster makes for the run."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        yield f"`run.name` is {name!r}: use letters, digits, dot, dash and underscore only."
    if len(name.encode()) > NAME_BYTES:
        yield f"`run.name` is {len(name)} characters long: {NAME_BYTES} bytes are the most."


def sizes(config: Config) -> Iterator[str]:
    """Prompts divide into updates, and a sample fits wherever it must be whole."""
    prompts, updates = config.prompts_per_step, config.updates_per_step
    if prompts % updates:
        yield (
            f"`prompts_per_step` ({prompts}) must be a multiple of `updates_per_step` ({updates}); "
            f"the nearest is {max(1, round(prompts / updates)) * updates}."
        )
    rows = config.data.rehearsal_per_step
    if bool(rows) != bool(config.data.rehearsal):
        yield (
            "`data.rehearsal` names files and `data.rehearsal_per_step` says how many of their rows a step trains on: "
            "set both, or none."
        )
    if rows % updates:
        yield (
            f"`data.rehearsal_per_step` ({rows}) must be a multiple of `updates_per_step` ({updates}), for each update "
            f"rehearses as many rows; the nearest is {max(1, round(rows / updates)) * updates}."
        )
    sample = config.data.max_prompt_tokens + config.data.max_response_tokens
    if sample > config.max_tokens_per_micro_batch:
        yield (
            f"A sample may have {sample} tokens (`data.max_prompt_tokens` + `data.max_response_tokens`) and must fit "
            f"into one micro-batch: raise `max_tokens_per_micro_batch` ({config.max_tokens_per_micro_batch}) to "
            f"{sample}, or lower the limits."
        )
    longest = config.context_tokens
    limit = config.rollout.engine.get("max_model_len", longest)
    if not isinstance(limit, int) or limit < longest:
        which = "evaluation" if longest > sample else "data"
        yield (
            f"`rollout.engine.max_model_len` is {limit!r}, but prompt and response may have {longest} tokens "
            f"together: raise it, leave it out, or lower `data.max_prompt_tokens` or `{which}.max_response_tokens`."
        )
    if config.run.steps and not config.data.train:
        yield "`data.train` is empty: name at least one file of prompts, or set `run.steps` to 0."


def sampling(config: Config) -> Iterator[str]:
    """What is sampled more than once differs, from a distribution that exists; γ is a share of it."""
    rollout, held_out = config.rollout, config.evaluation
    if rollout.temperature == 0 and config.group_size > 1:
        yield (
            f"`rollout.temperature` is 0, so all {config.group_size} rollouts of a prompt would be the same: raise "
            "it, or set `group_size` to 1."
        )
    if held_out.temperature == 0 and held_out.samples > 1:
        yield (
            f"`evaluation.temperature` is 0, so all {held_out.samples} samples of a prompt would be the same: "
            "raise it, or set `evaluation.samples` to 1."
        )
    shares = {
        "rollout.top_p": rollout.top_p,
        "rollout.gpu_memory_utilization": rollout.gpu_memory_utilization,
        "evaluation.top_p": held_out.top_p,
    }
    if wrong := [f"`{name}` ({share:g})" for name, share in shares.items() if not 0 < share <= 1]:
        yield f"{' and '.join(wrong)} must be above 0 and at most 1."
    if not -1 <= config.selection.gamma <= 1:
        yield (
            f"`selection.gamma` is {config.selection.gamma:g}, but it is compared with a share of correct rollouts: "
            "use a value from 0 to 1, or -1 for no demonstrations."
        )
    if config.selection.max_num_gen_batches > 1 and (
        rollout.max_off_policy_steps or config.run.deterministic
    ):
        yield (
            "`selection.max_num_gen_batches` above 1 draws prompts as results come, which `run.deterministic` and "
            "steps ahead (`rollout.max_off_policy_steps`) do not allow: leave it at 1, or these at their defaults."
        )
    if rollout.top_k < 1 and rollout.top_k != -1:
        yield f"`rollout.top_k` is {rollout.top_k}: use 1 or more, or -1 for all tokens."


def evaluation(config: Config) -> Iterator[str]:
    """There are sets to evaluate on, and the best checkpoint is chosen on one that may choose."""
    sets, every, best_of = config.evaluation.sets, config.evaluation.every, config.checkpoint.best_of
    if every and not sets:
        yield "`evaluation.every` is set, but `evaluation.sets` is empty: name a set, or set `every` to 0."
    if best_of is None:
        return
    if best_of not in sets:
        yield f"`checkpoint.best_of` is {best_of}, which is no set of `evaluation.sets`: name one of them."
    elif every == 0:
        yield "`checkpoint.best_of` needs evaluations to choose from: set `evaluation.every`."
    elif sets[best_of].startswith("mini:test/"):
        yield f"`checkpoint.best_of` is {best_of}, a test set: choose on a validation set."


def optimizer(config: Config) -> Iterator[str]:
    """Numbers of AdamW, of its schedule and of ZeRO."""
    learner = config.learner
    if len(learner.betas) != 2 or not all(0 <= beta < 1 for beta in learner.betas):
        yield f"`learner.betas` is {learner.betas}: give two numbers from 0 to below 1, such as [0.9, 0.999]."
    if learner.min_lr_ratio > 1:
        yield (
            f"`learner.min_lr_ratio` is {learner.min_lr_ratio:g}: it is the last learning rate over the peak, "
            "at most 1."
        )
    if learner.zero_stage > 3:
        yield f"`learner.zero_stage` is {learner.zero_stage}: DeepSpeed has the stages 0, 1, 2 and 3."
    if learner.offload_optimizer and learner.zero_stage == 0:
        yield "`learner.offload_optimizer` needs ZeRO: set `learner.zero_stage` to 1, 2 or 3, or switch it off."
    if learner.offload_activations and not (learner.gradient_checkpointing and learner.num_gpus):
        yield (
            "`learner.offload_activations` moves what `learner.gradient_checkpointing` keeps from GPUs to their "
            "host: set that too, with `learner.num_gpus`, or switch it off."
        )
    if learner.base_pull * learner.learning_rate > 1:
        yield (
            f"`learner.base_pull` ({learner.base_pull:g}) times `learner.learning_rate` ({learner.learning_rate:g}) is "
            "above 1, so every update would end at the base: lower it."
        )
    if learner.base_pull and config.model.random_init:
        yield "`learner.base_pull` pulls to the weights of `model.path`, but `model.random_init` draws others: use one."
    if learner.lora.rank and learner.base_pull:
        yield "`learner.lora` leaves the weights of `model.path` as they are: leave `learner.base_pull` at 0."
    if learner.lora.rank and not learner.lora.alpha:
        yield "`learner.lora.alpha` is 0, which switches the adapters off: 32 is usual."
    if learner.base_pull and "nvme" in str(learner.deepspeed):
        yield "`learner.base_pull` needs the float32 weights in memory: offload to the CPU, not to NVMe."
    if config.algorithm.correction != "none" and learner.recompute_old_logprobs:
        yield (
            "`algorithm.correction` bounds how far the learner is from the sampler, but with "
            "`learner.recompute_old_logprobs` log π_old is the learner's own: use one of the two."
        )


def placement(config: Config) -> Iterator[str]:
    """How many GPUs a process has, which nodes it may stand on, and what of one must be whole."""
    rollout, learner = config.rollout, config.learner
    if learner.num_gpus > 1:
        yield (
            f"`learner.num_gpus` is {learner.num_gpus:g}, but one rank uses at most one GPU: set it to 1 "
            "and raise `learner.num_ranks`."
        )
    if learner.num_ranks % learner.sequence_parallel:
        yield (
            f"`learner.sequence_parallel` ({learner.sequence_parallel}) must divide `learner.num_ranks` "
            f"({learner.num_ranks}), for so many ranks share each micro-batch: change one of the two."
        )
    if learner.sequence_parallel > 1 and config.model.attention != "segments":
        yield (
            f"`learner.sequence_parallel` needs `model.attention=segments`, the default; {config.model.attention} "
            "would see one rank's tokens alone."
        )
    wanted = rollout.tensor_parallel
    if rollout.num_gpus and wanted > 1 and rollout.num_gpus != wanted:
        yield (
            f"`rollout.tensor_parallel` is {wanted}, but one worker reserves {rollout.num_gpus:g} GPUs: set "
            f"`rollout.num_gpus` to {wanted}."
        )
    numbers = {"rollout.num_gpus": rollout.num_gpus, "learner.num_gpus": learner.num_gpus}
    if wrong := [f"`{name}` ({number:g})" for name, number in numbers.items() if number % 1]:
        yield (  # an engine's share of memory is of the whole GPU
            f"{' and '.join(wrong)} must be a whole number. For rollout workers and learner ranks on the same "
            "GPUs give both whole GPUs and set `cluster.colocate=true`."
        )
    for name, allowed in ONE_NODE.items():  # a bundle of the placement group is on one node, so an engine is
        value = rollout.engine.get(name, allowed)
        if value != allowed:
            yield (
                f"`rollout.engine.{name}` is {value!r}, but an engine is one process with "
                "`rollout.tensor_parallel` GPUs of one node: remove it, and set `rollout.tensor_parallel` and "
                "`rollout.num_workers`."
            )
    yield from wrong_pools(config.cluster)


def weights(config: Config) -> Iterator[str]:
    """What the learner sends is what the engine holds."""
    for name in ("quantization", "quantization_config"):
        if (value := config.rollout.engine.get(name)) is not None:
            yield (
                f"`rollout.engine.{name}` is {value!r}, but an engine in training takes the learner's weights as they "
                "are, and has none to put into its scales: remove it. Evaluations of a folder may use it."
            )


def batch_invariance(config: Config) -> Iterator[str]:
    """Sampler and learner compute the same numbers only where both compute in the one way that is covered."""
    rollout, learner = config.rollout, config.learner
    gpus = {name: getattr(config, name).num_gpus for name in ("rollout", "learner", "critic", "reference")}
    needs = {
        "`model.dtype` float32": config.model.dtype == "float32",
        "`model.attention` segments": config.model.attention == "segments",
        **{f"`{name}.num_gpus` 0": not num_gpus for name, num_gpus in gpus.items()},
        "`rollout.tensor_parallel` 1": rollout.tensor_parallel == 1,
        "`rollout.engine` without kv_cache_dtype": "kv_cache_dtype" not in rollout.engine,
        "`rollout.top_p` 1 and `rollout.top_k` -1": not rollout.is_cut,
        "`rollout.max_off_policy_steps` 0": not rollout.max_off_policy_steps,
        "`updates_per_step` 1": config.updates_per_step == 1,
        "`learner.lora.rank` 0": not learner.lora.rank,
        "`learner.sequence_parallel` 1": learner.sequence_parallel == 1,
    }
    missing = [need for need, is_met in needs.items() if not is_met]
    if config.model.batch_invariant and missing:
        yield f"`model.batch_invariant` needs {', '.join(missing)}; or set it to false."


def colocation(config: Config) -> Iterator[str]:
    """Engine i stands on the GPUs of the ranks from i · tensor_parallel on, and they take turns."""
    if config.cluster.colocate and (missing := list(_colocation_needs(config))):
        yield f"`cluster.colocate` needs {'; '.join(missing)}."


def _colocation_needs(config: Config) -> Iterator[str]:
    rollout, learner, pools = config.rollout, config.learner, config.cluster.pools
    ranks, gpus = rollout.num_workers * rollout.tensor_parallel, rollout.tensor_parallel * learner.num_gpus
    if learner.num_ranks != ranks:
        yield (
            f"`learner.num_ranks` ({learner.num_ranks}) to be {ranks}, `rollout.num_workers` times "
            "`rollout.tensor_parallel`"
        )
    if rollout.num_gpus != gpus:
        yield f"`rollout.num_gpus` ({rollout.num_gpus:g}) to be {gpus:g}, the GPUs of {rollout.tensor_parallel} ranks"
    if learner.zero_stage == 0:
        yield "`learner.zero_stage` to be 1, 2 or 3, whose optimizer state can be moved"
    if rollout.max_off_policy_steps:
        yield "`rollout.max_off_policy_steps` to be 0: nothing is generated while the learner has the GPUs"
    if pools.get("rollout") != pools.get("learner"):
        yield "`cluster.pools` to name the same resource for `rollout` and `learner`"


def wrong_pools(cluster: ClusterConfig) -> Iterator[str]:
    """What is wrong with `cluster.pools`, in words."""
    if unknown := sorted(cluster.pools.keys() - set(ACTOR_GROUPS)):
        yield f"`cluster.pools` names {', '.join(unknown)}; actor groups are {', '.join(ACTOR_GROUPS)}."
    for group, resource in cluster.pools.items():
        if resource in NOT_A_POOL:
            yield (
                f"`cluster.pools.{group}` is {resource!r}: name a custom resource that nodes are started with, "
                "as in `ray start --resources '{\"" + group + "\": 1}'`."
            )


RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    sizes,
    sampling,
    evaluation,
    optimizer,
    placement,
    weights,
    batch_invariance,
    colocation,
)
