"""What other trainers call our keys: where one of their names is written, the message says the key that is meant.

One row a name: the key here, and a note where the meaning, the unit or the way to write it differs. A name is looked
up as it is written, then by its last part. Nothing is translated in silence: what is meant by a batch differs from
trainer to trainer, so a person reads it once and writes the key.
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
_KL = "above 0 starts a frozen reference"

# TRL, LLaMA-Factory, OpenRLHF and verl (whose dotted names are below): name → key here, note.
NAMES: dict[str, tuple[str, str]] = {
    # optimizer
    "lr": ("learner.learning_rate", ""),
    "learning_rate": ("learner.learning_rate", ""),
    "actor_learning_rate": ("learner.learning_rate", ""),
    "critic_learning_rate": ("critic.learning_rate", ""),
    "lr_scheduler": ("learner.schedule", "constant, linear or cosine"),
    "lr_scheduler_type": ("learner.schedule", "constant, linear or cosine"),
    "lr_warmup_steps": ("learner.warmup_steps", ""),
    "lr_warmup_ratio": ("learner.warmup_steps", "in steps"),
    "warmup_steps": ("learner.warmup_steps", ""),
    "warmup_ratio": ("learner.warmup_steps", "in steps"),
    "weight_decay": ("learner.weight_decay", ""),
    "l2": ("learner.weight_decay", ""),
    "adam_betas": ("learner.betas", "a list, as in learner.betas=[0.9, 0.999]"),
    "adam_beta1": ("learner.betas", "a list, as in learner.betas=[0.9, 0.999]"),
    "adam_beta2": ("learner.betas", "a list, as in learner.betas=[0.9, 0.999]"),
    "max_grad_norm": ("learner.max_grad_norm", ""),
    "max_norm": ("learner.max_grad_norm", ""),
    "grad_clip": ("learner.max_grad_norm", ""),
    "gradient_checkpointing": ("learner.gradient_checkpointing", ""),
    "deepspeed": ("learner.zero_stage", "learner.deepspeed takes what else DeepSpeed has"),
    "zero_stage": ("learner.zero_stage", ""),
    "adam_offload": ("learner.offload_optimizer", ""),
    "fsdp": ("learner.zero_stage", "ranks run DeepSpeed; stage 3 shards weights too"),
    # adapters
    "use_peft": ("learner.lora.rank", _LORA),
    "use_lora": ("learner.lora.rank", _LORA),
    "finetuning_type": ("learner.lora.rank", _LORA),
    "lora_r": ("learner.lora.rank", _LORA),
    "lora_rank": ("learner.lora.rank", _LORA),
    "lora_alpha": ("learner.lora.alpha", ""),
    "lora_target": ("learner.lora.target_modules", _TARGETS),
    "lora_target_modules": ("learner.lora.target_modules", _TARGETS),
    "target_modules": ("learner.lora.target_modules", _TARGETS),
    # sizes
    "batch_size": ("prompts_per_step", _PROMPTS),
    "train_batch_size": ("prompts_per_step", _PROMPTS),
    "rollout_batch_size": ("prompts_per_step", _PROMPTS),
    "generation_batch_size": ("prompts_per_step", _PROMPTS),
    "per_device_train_batch_size": ("max_tokens_per_micro_batch", _MICRO),
    "micro_batch_size": ("max_tokens_per_micro_batch", _MICRO),
    "micro_train_batch_size": ("max_tokens_per_micro_batch", _MICRO),
    "micro_rollout_batch_size": ("rollout.max_num_seqs", "sequences that one engine decodes at the same time"),
    "gradient_accumulation_steps": ("max_tokens_per_micro_batch", f"follows from the other sizes; this one {_MICRO}"),
    "num_generations": ("group_size", ""),
    "n_samples_per_prompt": ("group_size", ""),
    "num_samples_per_prompt": ("group_size", ""),
    "rollout_n": ("group_size", ""),
    "num_rollouts": ("group_size", ""),
    "n": ("group_size", ""),
    "steps_per_generation": ("updates_per_step", ""),
    "num_iterations": ("updates_per_step", "each update takes other prompts of the step"),
    "ppo_epochs": ("updates_per_step", "each update takes other prompts of the step"),
    # lengths
    "max_prompt_length": ("data.max_prompt_tokens", "longer prompts are dropped, not truncated"),
    "prompt_max_len": ("data.max_prompt_tokens", "longer prompts are dropped, not truncated"),
    "max_completion_length": ("data.max_response_tokens", ""),
    "max_response_length": ("data.max_response_tokens", ""),
    "max_new_tokens": ("data.max_response_tokens", ""),
    "max_tokens": ("data.max_response_tokens", ""),
    "generate_max_len": ("data.max_response_tokens", ""),
    "max_length": ("data.max_response_tokens", "with data.max_prompt_tokens, the length of a sample"),
    "max_len": ("data.max_response_tokens", "with data.max_prompt_tokens, the length of a sample"),
    "max_seq_length": ("data.max_response_tokens", "with data.max_prompt_tokens, the length of a sample"),
    "cutoff_len": ("data.max_response_tokens", "with data.max_prompt_tokens, the length of a sample"),
    # how long
    "steps": ("run.steps", ""),
    "max_steps": ("run.steps", ""),
    "total_steps": ("run.steps", ""),
    "num_train_epochs": ("run.steps", _EPOCHS),
    "epochs": ("run.steps", _EPOCHS),
    "max_epochs": ("run.steps", _EPOCHS),
    "num_episodes": ("run.steps", _EPOCHS),
    "seed": ("run.seed", ""),
    # sampling
    "temperature": ("rollout.temperature", "evaluations: evaluation.temperature"),
    "top_p": ("rollout.top_p", "evaluations: evaluation.top_p"),
    "top_k": ("rollout.top_k", ""),
    "vllm_gpu_memory_utilization": ("rollout.gpu_memory_utilization", ""),
    "vllm_tensor_parallel_size": ("rollout.tensor_parallel", ""),
    "tensor_parallel_size": ("rollout.tensor_parallel", ""),
    "vllm_num_engines": ("rollout.num_workers", ""),
    "vllm_max_model_length": ("data.max_response_tokens", "an engine is as long as the longest sample"),
    "use_vllm": ("rollout.num_workers", "rollouts always come from vLLM"),
    "vllm_mode": ("cluster.colocate", "colocate is cluster.colocate=true"),
    "colocate_all_models": ("cluster.colocate", ""),
    "vllm_enable_sleep": ("cluster.colocate", "engines sleep while the learner has their GPUs"),
    # algorithm
    "beta": ("algorithm.kl_coef", _KL),
    "kl_coef": ("algorithm.kl_coef", _KL),
    "init_kl_coef": ("algorithm.kl_coef", _KL),
    "kl_loss_coef": ("algorithm.kl_coef", _KL),
    "use_kl_loss": ("algorithm.kl_coef", f"{_KL}, and acts where algorithm.kl_in says"),
    "use_kl_in_reward": ("algorithm.kl_in", "write algorithm.kl_in=reward, with algorithm.kl_coef above 0"),
    "kl_loss_type": ("algorithm.kl_estimator", "k1, k2 or k3 (low_var_kl is k3)"),
    "kl_estimator": ("algorithm.kl_estimator", ""),
    "epsilon": ("algorithm.clip_low", "and algorithm.clip_high for the other side"),
    "epsilon_low": ("algorithm.clip_low", ""),
    "epsilon_high": ("algorithm.clip_high", ""),
    "eps_clip": ("algorithm.clip_low", "and algorithm.clip_high for the other side"),
    "eps_clip_low_high": ("algorithm.clip_low", "and algorithm.clip_high for the other side"),
    "clip_ratio": ("algorithm.clip_low", "and algorithm.clip_high for the other side"),
    "clip_ratio_low": ("algorithm.clip_low", ""),
    "clip_ratio_high": ("algorithm.clip_high", ""),
    "clip_range": ("algorithm.clip_low", "and algorithm.clip_high for the other side"),
    "cliprange": ("algorithm.clip_low", "and algorithm.clip_high for the other side"),
    "entropy_coeff": ("algorithm.entropy_coef", ""),
    "entropy_loss_coef": ("algorithm.entropy_coef", ""),
    "adv_estimator": ("algorithm.name", "the advantage alone is algorithm.rollout_advantage"),
    "advantage_estimator": ("algorithm.name", "the advantage alone is algorithm.rollout_advantage"),
    "loss_type": ("algorithm.name", "the aggregation alone is algorithm.rollout_loss_aggregation"),
    "loss_agg_mode": ("algorithm.rollout_loss_aggregation", ""),
    "scale_rewards": ("algorithm.rollout_advantage", "group_std scales, group_mean does not"),
    "gamma": ("algorithm.discount", "selection.gamma is the gate's γ, another thing"),
    "lam": ("algorithm.gae_lambda", ""),
    "lambd": ("algorithm.gae_lambda", ""),
    "cliprange_value": ("critic.value_clip", ""),
    "value_clip": ("critic.value_clip", ""),
    # model and precision
    "model_name_or_path": ("model.path", ""),
    "model_name": ("model.path", ""),
    "pretrain": ("model.path", ""),
    "model_path": ("model.path", ""),
    "ref_model": ("reference.path", _KL.replace("above 0", "algorithm.kl_coef above 0")),
    "bf16": ("model.dtype", _DTYPE),
    "fp16": ("model.dtype", f"float32 or bfloat16; {_DTYPE}"),
    "torch_dtype": ("model.dtype", ""),
    "param_dtype": ("model.dtype", ""),
    "attn_implementation": ("model.attention", ""),
    "flash_attn": ("model.attention", "leave it out: `segments`, the default, needs no further package"),
    "trust_remote_code": ("model.trust_remote_code", ""),
    "rope_scaling": ("model.config_overrides", "as model.config_overrides.rope_parameters={…}"),
    # data
    "dataset": ("data.train", "files, as in data.train=[FILE]"),
    "dataset_name": ("data.train", "files: download the set, then data.train=[FILE]"),
    "prompt_data": ("data.train", "files, as in data.train=[FILE]"),
    "train_files": ("data.train", "a list, as in data.train=[FILE]"),
    "train_file": ("data.train", "a list, as in data.train=[FILE]"),
    "val_files": ("evaluation.sets", "by name, as in evaluation.sets.held_out=FILE"),
    "eval_dataset": ("evaluation.sets", "by name, as in evaluation.sets.held_out=FILE"),
    "input_key": ("data.columns", _COLUMN),
    "label_key": ("data.columns", _COLUMN),
    "output_key": ("data.columns", _COLUMN),
    "prompt_key": ("data.columns", _COLUMN),
    "apply_chat_template": ("data.template", "chat, plain or a text with {prompt} in it"),
    "chat_template": ("data.template", "chat, plain or a text with {prompt} in it"),
    "input_template": ("data.template", "chat, plain or a text with {prompt} in it"),
    # reward
    "reward_funcs": ("reward.function", _PYTHON),
    "reward_function": ("reward.function", _PYTHON),
    "remote_rm_url": ("reward.function", "write reward.function=http:URL"),
    "reward_pretrain": ("reward.function", "a reward model answers as reward.function=http:URL"),
    # what is kept and shown
    "output_dir": ("run.dir", _FOLDER),
    "save_path": ("run.dir", _FOLDER),
    "run_name": ("run.name", ""),
    "save_steps": ("checkpoint.every", ""),
    "save_total_limit": ("checkpoint.keep", ""),
    "ckpt_path": ("run.dir", f"{_FOLDER}, with checkpoints/ in it"),
    "resume_from_checkpoint": ("resume", "auto, or a run folder"),
    "load_checkpoint": ("resume", "auto, or a run folder"),
    "eval_steps": ("evaluation.every", ""),
    "logging_steps": ("observe.samples_every", "every step is logged; this is how often samples are shown"),
    "report_to": ("observe.trackers", _TRACKERS),
    "use_wandb": ("observe.trackers", "write observe.trackers=[wandb]"),
    "num_gpus": ("learner.num_ranks", "with learner.num_gpus=1; engines are rollout.num_workers"),
    "nproc_per_node": ("learner.num_ranks", "with learner.num_gpus=1; engines are rollout.num_workers"),
    "actor_num_gpus_per_node": ("learner.num_ranks", "of all nodes together, with learner.num_gpus=1"),
    # verl
    "actor_rollout_ref.model.path": ("model.path", ""),
    "actor_rollout_ref.model.enable_gradient_checkpointing": ("learner.gradient_checkpointing", ""),
    "actor_rollout_ref.model.override_config": ("model.config_overrides", ""),
    "actor_rollout_ref.model.lora_rank": ("learner.lora.rank", _LORA),
    "actor_rollout_ref.model.lora_alpha": ("learner.lora.alpha", ""),
    "actor_rollout_ref.model.target_modules": ("learner.lora.target_modules", _TARGETS),
    "actor_rollout_ref.actor.optim.lr": ("learner.learning_rate", ""),
    "actor_rollout_ref.actor.ppo_mini_batch_size": (
        "updates_per_step", "the number of mini-batches: prompts_per_step / ppo_mini_batch_size",
    ),
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": ("max_tokens_per_micro_batch", _MICRO),
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": ("max_tokens_per_micro_batch", ""),
    "actor_rollout_ref.actor.use_dynamic_bsz": ("max_tokens_per_micro_batch", "always so"),
    "actor_rollout_ref.actor.use_kl_loss": ("algorithm.kl_coef", f"{_KL}; algorithm.kl_in=loss"),
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload": ("learner.offload_optimizer", ""),
    "actor_rollout_ref.rollout.n": ("group_size", ""),
    "actor_rollout_ref.rollout.name": ("rollout.engine", "the engine is always vLLM; its arguments go there"),
    "actor_rollout_ref.rollout.tensor_model_parallel_size": (
        "rollout.tensor_parallel", "engines are counted by rollout.num_workers",
    ),
    "actor_rollout_ref.rollout.gpu_memory_utilization": ("rollout.gpu_memory_utilization", ""),
    "actor_rollout_ref.rollout.val_kwargs.n": ("evaluation.samples", ""),
    "actor_rollout_ref.rollout.val_kwargs.temperature": ("evaluation.temperature", ""),
    "actor_rollout_ref.rollout.val_kwargs.top_p": ("evaluation.top_p", ""),
    "actor_rollout_ref.hybrid_engine": ("cluster.colocate", ""),
    "algorithm.adv_estimator": ("algorithm.name", "the advantage alone is algorithm.rollout_advantage"),
    "algorithm.kl_ctrl.kl_coef": ("algorithm.kl_coef", f"{_KL}; with algorithm.kl_in=reward"),
    "critic.optim.lr": ("critic.learning_rate", ""),
    "custom_reward_function.path": ("reward.function", _PYTHON),
    "custom_reward_function.name": ("reward.function", _PYTHON),
    "reward_model.model.path": ("reward.function", "a reward model answers as reward.function=http:URL"),
    "data.train_batch_size": ("prompts_per_step", _PROMPTS),
    "trainer.total_epochs": ("run.steps", _EPOCHS),
    "trainer.total_training_steps": ("run.steps", ""),
    "trainer.n_gpus_per_node": ("learner.num_ranks", "of all nodes together; engines are rollout.num_workers"),
    "trainer.nnodes": ("learner.num_ranks", "of all nodes together; engines are rollout.num_workers"),
    "trainer.logger": ("observe.trackers", _TRACKERS),
    "trainer.save_freq": ("checkpoint.every", ""),
    "trainer.test_freq": ("evaluation.every", ""),
    "trainer.val_before_train": ("evaluation.before_training", ""),
    "trainer.default_local_dir": ("run.dir", _FOLDER),
    "trainer.resume_mode": ("resume", "auto, never or a run folder"),
    "trainer.project_name": ("run.name", "one name; runs are told apart by it and the time"),
    "trainer.experiment_name": ("run.name", ""),
}  # fmt: skip


def meaning(name: str) -> tuple[str, str] | None:
    """The key here and the note, for another trainer's name; None for a name that is not known."""
    return NAMES.get(name) or NAMES.get(name.rpartition(".")[2])


def names_in(name: str, value: Any) -> Iterator[str]:
    """`name`, or, where it holds a mapping, the full names of what stands in it."""
    if isinstance(value, Mapping) and value and name not in NAMES:
        for part, inner in value.items():
            yield from names_in(f"{name}.{part}", inner)
    else:
        yield name
