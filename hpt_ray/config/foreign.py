"""What other trainers call our keys: where one of their names is written, the message says the key that is meant.

One row a key and a note, which says where the meaning, the unit or the way to write it differs: their names for it.
A name is looked up as it is written, then by its last part, then by the parts before. Nothing is translated in
silence: what is meant by a batch differs from trainer to trainer, so a person reads it once and writes the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PROMPTS = "counts prompts; each has group_size rollouts"
_MICRO = "counts tokens; samples are packed"
_COLUMN = "common columns are recognised; else data.columns.prompt=COLUMN, data.columns.answer=COLUMN"
_EPOCHS = "epochs · rows of data.train / prompts_per_step"
_PYTHON = "write reward.function=python:FILE:FUNCTION"
_TRACKERS = "a list, as in observe.trackers=[wandb]"
_FOLDER = "run folders are run.dir/NAME-TIME"
_DTYPE = "write model.dtype=bfloat16"
_LORA = "above 0 trains adapters, and 0 all weights"
_TARGETS = "a list, as in learner.lora.target_modules=[all-linear]"
_THINKING = "as in data.chat_template_kwargs={enable_thinking: false}"
_EQUAL = "above 1: prompts of equal rewards are replaced, until the step has drawn so many batches"
_KL = "above 0 starts a frozen reference"

# Key here, note → names in TRL, LLaMA-Factory, OpenRLHF and verl, whose names have dots.
_ROWS = {
    # optimizer
    ("learner.learning_rate", ""): "lr learning_rate actor_learning_rate actor_rollout_ref.actor.optim.lr",
    ("critic.learning_rate", ""): "critic_learning_rate critic.optim.lr",
    ("learner.schedule", "constant, linear or cosine"): "lr_scheduler lr_scheduler_type",
    ("learner.warmup_steps", ""): "lr_warmup_steps warmup_steps",
    ("learner.warmup_steps", "in steps"): "lr_warmup_ratio warmup_ratio",
    ("learner.weight_decay", ""): "weight_decay l2",
    ("learner.betas", "a list, as in learner.betas=[0.9, 0.999]"): "adam_betas adam_beta1 adam_beta2",
    ("learner.max_grad_norm", ""): "max_grad_norm max_norm grad_clip",
    ("learner.gradient_checkpointing", ""):
        "gradient_checkpointing actor_rollout_ref.model.enable_gradient_checkpointing",
    ("learner.offload_activations", ""):
        "activation_offloading actor_rollout_ref.model.enable_activation_offload",
    ("learner.zero_stage", "learner.deepspeed takes what else DeepSpeed has"): "deepspeed",
    ("learner.zero_stage", ""): "zero_stage",
    ("learner.zero_stage", "ranks run DeepSpeed; stage 3 shards weights too"): "fsdp",
    ("learner.offload_optimizer", ""): "adam_offload actor_rollout_ref.actor.fsdp_config.optimizer_offload",
    # adapters
    ("learner.lora.rank", _LORA):
        "use_peft use_lora finetuning_type lora_r lora_rank actor_rollout_ref.model.lora_rank",
    ("learner.lora.alpha", ""): "lora_alpha actor_rollout_ref.model.lora_alpha",
    ("learner.lora.target_modules", _TARGETS):
        "lora_target lora_target_modules target_modules actor_rollout_ref.model.target_modules",
    # sizes
    ("prompts_per_step", _PROMPTS):
        "batch_size train_batch_size rollout_batch_size generation_batch_size data.train_batch_size",
    ("max_tokens_per_micro_batch", _MICRO):
        "per_device_train_batch_size micro_batch_size micro_train_batch_size log_prob_micro_batch_size_per_gpu "
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    ("max_tokens_per_micro_batch", f"follows from the other sizes; this one {_MICRO}"):
        "gradient_accumulation_steps",
    ("rollout.max_num_seqs", "sequences that one engine decodes at the same time"): "micro_rollout_batch_size",
    ("group_size", ""):
        "num_generations n_samples_per_prompt num_samples_per_prompt rollout_n num_rollouts n "
        "actor_rollout_ref.rollout.n",
    ("updates_per_step", ""): "steps_per_generation",
    ("updates_per_step", "each update takes other prompts of the step"): "num_iterations ppo_epochs",
    # lengths
    ("data.max_prompt_tokens", "longer prompts are dropped, not truncated"):
        "max_prompt_length prompt_max_len truncation filter_overlong_prompts",
    ("data.max_response_tokens", ""):
        "max_completion_length max_response_length max_new_tokens max_tokens generate_max_len",
    ("data.max_response_tokens", "with data.max_prompt_tokens, the length of a sample"):
        "max_length max_len max_seq_length cutoff_len",
    # how long
    ("run.steps", ""): "steps max_steps total_steps trainer.total_training_steps",
    ("run.steps", _EPOCHS): "num_train_epochs epochs max_epochs num_episodes trainer.total_epochs",
    ("run.seed", ""): "seed",
    # sampling
    ("rollout.temperature", "evaluations: evaluation.temperature"): "temperature",
    ("rollout.top_p", "evaluations: evaluation.top_p"): "top_p",
    ("rollout.top_k", ""): "top_k",
    ("rollout.gpu_memory_utilization", ""):
        "vllm_gpu_memory_utilization actor_rollout_ref.rollout.gpu_memory_utilization",
    ("rollout.tensor_parallel", ""): "vllm_tensor_parallel_size tensor_parallel_size",
    ("rollout.num_workers", ""): "vllm_num_engines",
    ("rollout.num_workers", "rollouts always come from vLLM"): "use_vllm",
    ("data.max_response_tokens", "an engine is as long as the longest sample"): "vllm_max_model_length",
    ("cluster.colocate", "colocate is cluster.colocate=true"): "vllm_mode",
    ("cluster.colocate", ""): "colocate_all_models actor_rollout_ref.hybrid_engine",
    ("cluster.take_turns", "with cluster.colocate=true"):
        "vllm_enable_sleep vllm_enable_sleep_mode actor_rollout_ref.rollout.free_cache_engine",
    # algorithm
    ("algorithm.kl_coef", _KL): "beta kl_coef init_kl_coef kl_loss_coef",
    ("algorithm.kl_coef", f"{_KL}, and acts where algorithm.kl_in says"): "use_kl_loss",
    ("algorithm.kl_in", "write algorithm.kl_in=reward, with algorithm.kl_coef above 0"): "use_kl_in_reward",
    ("algorithm.kl_estimator", "k1, k2 or k3 (low_var_kl is k3)"): "kl_loss_type",
    ("algorithm.kl_estimator", ""): "kl_estimator",
    ("algorithm.clip_low", "and algorithm.clip_high for the other side"):
        "epsilon eps_clip eps_clip_low_high clip_ratio clip_range cliprange",
    ("algorithm.clip_low", ""): "epsilon_low clip_ratio_low",
    ("algorithm.clip_high", ""): "epsilon_high clip_ratio_high",
    ("algorithm.entropy_coef", ""): "entropy_coeff entropy_loss_coef",
    ("algorithm.name", "the advantage alone is algorithm.rollout_advantage"):
        "adv_estimator advantage_estimator algorithm.adv_estimator",
    ("selection.max_num_gen_batches", _EQUAL):
        "filter_groups dynamic_filtering max_num_gen_batches algorithm.filter_groups.max_num_gen_batches",
    ("algorithm.name", "sequence is gspo, token is grpo"): "importance_sampling_level",
    ("algorithm.name", "the aggregation alone is algorithm.rollout_loss_aggregation"): "loss_type",
    ("algorithm.rollout_loss_aggregation", ""): "loss_agg_mode",
    ("algorithm.rollout_advantage", "group_std scales, group_mean does not"):
        "scale_rewards norm_adv_by_std_in_grpo",
    ("algorithm.discount", "selection.gamma is the gate's γ, another thing"): "gamma",
    ("algorithm.gae_lambda", ""): "lam lambd",
    ("critic.value_clip", ""): "cliprange_value value_clip",
    # model and precision
    ("model.path", ""): "model_name_or_path model_name pretrain model_path actor_rollout_ref.model.path",
    ("reference.path", _KL.replace("above 0", "algorithm.kl_coef above 0")): "ref_model",
    ("model.dtype", _DTYPE): "bf16",
    ("model.dtype", f"float32 or bfloat16; {_DTYPE}"): "fp16",
    ("model.dtype", ""): "torch_dtype param_dtype",
    ("model.attention", ""): "attn_implementation",
    ("model.attention", "leave it out: `segments`, the default, needs no further package"): "flash_attn",
    ("model.trust_remote_code", ""): "trust_remote_code",
    ("model.config_overrides", "as model.config_overrides.rope_parameters={…}"): "rope_scaling",
    # data
    ("data.train", "files, as in data.train=[FILE]"): "dataset prompt_data",
    ("data.rehearsal", "files, with data.rehearsal_per_step"): "pretrain_data",
    ("data.rehearsal_per_step", "the weight is the number of rows, for each weighs as a demonstration does"):
        "ptx_coef",
    ("data.train", "files: download the set, then data.train=[FILE]"): "dataset_name",
    ("data.train", "a list, as in data.train=[FILE]"): "train_files train_file",
    ("evaluation.sets", "by name, as in evaluation.sets.held_out=FILE"): "val_files eval_dataset",
    ("data.columns", _COLUMN): "input_key label_key output_key prompt_key",
    ("data.template", "chat, plain or a text with {prompt} in it"):
        "apply_chat_template chat_template input_template",
    ("data.chat_template_kwargs", ""): "chat_template_kwargs apply_chat_template_kwargs",
    ("data.chat_template_kwargs", _THINKING): "enable_thinking",
    # reward
    ("reward.function", _PYTHON):
        "reward_funcs reward_function reward_manager custom_reward_function.path custom_reward_function.name",
    ("reward.terms", "one function; these are weights of further terms beside it"): "reward_weights",
    ("reward.function", "write reward.function=http:URL"): "remote_rm_url",
    ("reward.function", "a reward model answers as reward.function=http:URL"):
        "reward_pretrain reward_model.model.path",
    # what is kept and shown
    ("run.dir", _FOLDER): "output_dir save_path trainer.default_local_dir",
    ("run.dir", f"{_FOLDER}, with checkpoints/ in it"): "ckpt_path",
    ("run.name", ""): "run_name trainer.experiment_name",
    ("checkpoint.every", ""): "save_steps save_strategy trainer.save_freq",
    ("checkpoint.keep", ""): "save_total_limit",
    ("resume", "auto, or a run folder"): "resume_from_checkpoint load_checkpoint",
    ("evaluation.every", ""): "eval_steps eval_strategy trainer.test_freq",
    ("observe.samples_every", "every step is logged; this is how often samples are shown"):
        "logging_steps log_completions",
    ("observe.trackers", _TRACKERS): "report_to trainer.logger",
    ("observe.trackers", "write observe.trackers=[wandb]"): "use_wandb",
    ("learner.num_ranks", "with learner.num_gpus=1; engines are rollout.num_workers"): "num_gpus nproc_per_node",
    ("learner.num_ranks", "of all nodes together, with learner.num_gpus=1"): "actor_num_gpus_per_node actor_num_nodes",
    ("learner.sequence_parallel", "a divisor of learner.num_ranks, which counts all ranks"):
        "ulysses_sequence_parallel_size context_parallel_size ring_attn_size",
    # verl
    ("model.config_overrides", ""): "actor_rollout_ref.model.override_config",
    ("updates_per_step", "the number of mini-batches: prompts_per_step / ppo_mini_batch_size"):
        "actor_rollout_ref.actor.ppo_mini_batch_size",
    ("max_tokens_per_micro_batch", ""): "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    ("max_tokens_per_micro_batch", "always so"): "packing actor_rollout_ref.actor.use_dynamic_bsz",
    ("algorithm.kl_coef", f"{_KL}; algorithm.kl_in=loss"): "actor_rollout_ref.actor.use_kl_loss",
    ("algorithm.kl_coef", f"{_KL}; with algorithm.kl_in=reward"): "algorithm.kl_ctrl.kl_coef",
    ("rollout.engine", "the engine is always vLLM; its arguments go there"): "actor_rollout_ref.rollout.name",
    ("rollout.tensor_parallel", "engines are counted by rollout.num_workers"):
        "actor_rollout_ref.rollout.tensor_model_parallel_size",
    ("evaluation.samples", ""): "actor_rollout_ref.rollout.val_kwargs.n",
    ("evaluation.temperature", ""): "actor_rollout_ref.rollout.val_kwargs.temperature",
    ("evaluation.top_p", ""): "actor_rollout_ref.rollout.val_kwargs.top_p",
    ("learner.num_ranks", "of all nodes together; engines are rollout.num_workers"):
        "trainer.n_gpus_per_node trainer.nnodes",
    ("evaluation.before_training", ""): "trainer.val_before_train",
    ("resume", "auto, never or a run folder"): "trainer.resume_mode",
    ("run.name", "one name; runs are told apart by it and the time"): "trainer.project_name wandb_project",
}  # fmt: skip
NAMES = {name: meant for meant, names in _ROWS.items() for name in names.split()}


def meaning(name: str) -> tuple[str, str] | None:
    """The key here and the note, for another trainer's name; None for a name that is not known."""
    parts = reversed(name.split("."))
    return next((NAMES[each] for each in (name, *parts) if each in NAMES), None)


def names_in(name: str, value: Any) -> Iterator[str]:
    """`name`, or, where it holds a mapping, the full names of what stands in it."""
    if isinstance(value, Mapping) and value and name not in NAMES:
        for part, inner in value.items():
            yield from names_in(f"{name}.{part}", inner)
    else:
        yield name
