"""Every key of a run, with its default and one line that says what it does.

This is the only list of keys, with the sections of `config.algorithm`, `config.data` and `config.training`: the table
in docs/configuration.md is made from it, unknown keys are refused against it, and `tests/docs` checks both. Sections
stand in the order of the data flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hpt_ray.config.algorithm import AlgorithmConfig
from hpt_ray.config.fields import key, section
from hpt_ray.config.training import CriticConfig, LearnerConfig, ReferenceConfig


@dataclass
class RunConfig:
    """How long, where, from what seed."""

    name: str = key("run", "Name of the run; its folder is DIR/NAME-TIME.")
    dir: str = key("runs", "Folder that holds run folders.")
    seed: int = key(0, "Seed of data order, sampling and random initialisation.")
    steps: int = key(100, "Steps to train for (one batch of prompts each).")
    deterministic: bool = key(
        False,
        "Train on samples in the order of the prompts, not of arrival, so that a resumed run is the same bit "
        "for bit (CPUs, float32). Less overlap, one thread per actor, no early decisions.",
    )
    plugins: list[str] = key(
        [],
        "Python files of yours that add algorithms, gates, reward functions, trackers and the like. See "
        "CONTRIBUTING.md.",
    )


@dataclass
class ModelConfig:
    """The policy that is trained."""

    path: str = key(
        "???",
        "Model folder, Hub name, or `mini:SIZE` for the small task's base (`mini:SIZE-s1`: another draw).",
    )
    random_init: bool = key(False, "Draw random weights instead of loading them.")
    dtype: str = key("float32", "Training and sampling precision.", choices=("float32", "bfloat16"))
    attention: str = key(
        "segments",
        "`segments` (exact packed attention on any device), or one of transformers' own that is installed.",
    )
    batch_invariant: bool = key(
        False,
        "Sampler and learner compute the same log-probs bit for bit, so that training is exactly on-policy "
        "(CPUs, float32). See docs/models.md.",
    )
    config_overrides: dict[str, Any] = key({}, "Keys of the model's config.json to replace.")
    trust_remote_code: bool = key(False, "Run Python code that comes with the model.")


@dataclass
class DataConfig:
    """Prompts, demonstrations, and how they become tokens."""

    train: list[str] = key([], "Training prompts: files or folders of rows (docs/data.md), or `mini:train`.")
    rehearsal: list[str] = key(
        [],
        "Files of rows, as in `train`, whose demonstrations train beside everything else, against forgetting. See "
        "docs/methods.md.",
    )
    rehearsal_per_step: int = key(
        0, "Rows of `rehearsal` in one step; each weighs as much as the demonstration of a prompt in `sft`."
    )
    columns: dict[str, str] = key(
        {},
        "Columns that are not recognised: `{prompt: …, target: …, answer: …, data_source: …}`; `target` is "
        "the demonstration, `answer` the ground truth.",
    )
    template: str = key(
        "chat",
        "`chat`: the tokenizer's template; `plain`: the prompt's text; or a text with `{prompt}` in it.",
    )
    chat_template_kwargs: dict[str, Any] = key(
        {},
        "What the tokenizer's chat template is given beside the messages, such as `{enable_thinking: false}`.",
    )
    add_bos: bool = key(False, "Put the tokenizer's BOS token first (`plain` and text templates).")
    system_prompt: str | None = key(None, "Replaces every prompt's system message; empty text removes it.")
    end_token: str | None = key(
        None,
        "The only token that ends a response. Default: the chat template's end of turn, else EOS, and for "
        "rollouts the generation config's tokens too.",
    )
    max_prompt_tokens: int = key(1024, "Longer prompts are dropped and counted.", minimum=1)
    max_response_tokens: int = key(8192, "Limit of a rollout; longer demonstrations are dropped.", minimum=1)
    shuffle: bool = key(True, "Draw a new order each epoch from the seed; false keeps the files' order.")


@dataclass
class RolloutConfig:
    """The vLLM workers."""

    num_workers: int = key(1, "Independent vLLM engines.", minimum=1)
    tensor_parallel: int = key(1, "GPUs of one engine.", minimum=1)
    num_cpus: float = key(1.0, "CPU cores reserved for one worker.")
    num_gpus: float = key(0.0, "GPUs reserved for one worker (0: the CPU build of vLLM).")
    temperature: float = key(1.0, "Sampling temperature of training rollouts.")
    top_p: float = key(
        1.0,
        "Nucleus of training rollouts; below 1 refused if the algorithm uses π_θ/π_old. See docs/models.md.",
        minimum=None,
    )
    top_k: int = key(-1, "As `top_p`, for the k likeliest tokens; -1: all.", minimum=None)
    max_num_seqs: int = key(256, "Sequences one engine decodes at the same time.", minimum=1)
    kv_cache_gib: float = key(0.5, "KV cache of one engine on a CPU, in GiB.")
    gpu_memory_utilization: float = key(
        0.75,
        "Share of a GPU's memory for vLLM; with `cluster.colocate` the rest must hold the learner's "
        "parameters.",
        minimum=None,
    )
    enforce_eager: bool | None = key(
        None, "Decode without CUDA graphs, which start some seconds sooner; default: with them on GPUs."
    )
    engine: dict[str, Any] = key({}, "More vLLM engine arguments, as vLLM names them.")
    start_timeout_s: float = key(300.0, "Limit for an engine to come up.", minimum=1)
    timeout_s: float = key(1800.0, "Limit for the next rollout to come, from any worker.", minimum=1)
    stall_timeout_s: float = key(
        300.0,
        "An engine without a step for so long is replaced; after a third of it, it gets no requests.",
        minimum=1,
    )
    max_off_policy_steps: int = key(
        0,
        "Steps that generation may run ahead of the weights; 0: exactly on-policy. Above 0 the algorithm's "
        "ratio or `algorithm.correction` accounts for it.",
    )
    max_restarts: int = key(3, "Most restarts of a worker in a row without a rollout.")

    @property
    def is_eager(self) -> bool:
        """Decoding goes without CUDA graphs; `engine` has the last word."""
        said = self.engine.get("enforce_eager", self.enforce_eager)
        return self.num_gpus == 0 if said is None else bool(said)

    @property
    def is_cut(self) -> bool:
        """Rollouts come from a part of the model's distribution only."""
        return self.top_p < 1 or self.top_k > 0


@dataclass
class RewardConfig:
    """The verifier service."""

    function: str = key(
        "math",
        "Reward function of all data sources that `functions` does not name: `math`, `math:lenient`, `boxed`, "
        "`gsm8k`, "
        "`choice`, `exact`, `regex:PATTERN`, `python:FILE:FUNCTION` or `http:URL`; see docs/reward.md.",
    )
    functions: dict[str, str] = key({}, "Reward function per data source, e.g. `{openai/gsm8k: gsm8k}`.")
    headers: dict[str, str] = key(
        {},
        "Headers for `http:URL`, as in `{Authorization: 'Bearer ${oc.env:JUDGE_KEY}'}`; the key is never "
        "written down.",
    )
    environment: list[str] = key(
        [],
        "Further environment variables for reward functions, such as `[OPENAI_API_KEY]`. See docs/reward.md.",
    )
    num_processes: int = key(1, "Killable processes that run reward functions.", minimum=1)
    num_cpus: float = key(0.0, "CPU cores reserved for the service.")
    timeout_s: float = key(10.0, "Limit for one response; then its process is killed and replaced.")
    max_failure_share: float = key(
        0.1,
        "The run saves and stops if more than this share of a step's responses has no reward; 1: never.",
    )
    memory_mb: int = key(2048, "Address space of one such process, in MB.", minimum=256)
    require_finished: bool = key(
        True,
        "Count a truncated response as `no_answer`. The official HPT code does not.",
    )
    terms: dict[str, float] = key(
        {}, "Extra rewards and their weights, `format` or `overlong`; they change the score, not the outcome."
    )
    overlong_buffer: int = key(
        4096, "Tokens before the response limit over which `overlong` falls from 0 to −1 (DAPO).", minimum=1
    )


@dataclass
class SelectionConfig:
    """The gate: which data trains, per prompt."""

    gate: str = key(
        "auto",
        "`switch` (paper, Eq 10); softly `posterior`, `linear` or `official_soft`; `rollouts`, "
        "`demonstrations`, `both` or `prefixes` always; `auto`: the algorithm's own. See docs/methods.md.",
    )
    gamma: float = key(
        0.0,
        "γ: a prompt trains on its demonstration when its share of correct rollouts is at most γ (`switch`), "
        "or with the probability that its solve rate is (`posterior`).",
        minimum=-1,
    )
    max_num_gen_batches: int = key(
        1,
        "Batches of prompts that a step may draw. Above 1 a prompt whose rewards are all equal, and which so "
        "trains nothing, is replaced by the next one (DAPO's dynamic sampling).",
        minimum=1,
    )
    early_decision: bool = key(
        True,
        "Abort a prompt's rollouts once enough are wrong that `switch` must choose its demonstration. "
        "Decisions and gradient stay the same; aborted rollouts are in no mean.",
    )


@dataclass
class WeightSyncConfig:
    """From the learner to the rollout workers."""

    backend: str = key("auto", "`gloo`, `nccl`, `ipc` (colocated), or `auto`: nccl between GPUs not shared.")
    bucket_mb: int = key(64, "Size of one packed bucket.", minimum=1)
    timeout_s: float = key(300.0, "Limit for one sync.", minimum=1)


@dataclass
class CheckpointConfig:
    """What is kept for later."""

    every: int = key(0, "Steps between checkpoints; 0: only the last.")
    keep: int = key(2, "Newest checkpoints to keep; 0: all.")
    in_memory_every: int = key(
        0,
        "Steps between copies of the ranks' state in memory, for lost ranks; 0: none. See docs/faults.md.",
    )
    mirror: str | None = key(
        None,
        "Folder or URL (`s3://…`, `gs://…`, what fsspec knows) that each checkpoint is copied to. See "
        "docs/resume.md.",
    )
    best_of: str | None = key(
        None,
        "Set of `evaluation.sets` whose best checkpoint is kept too. Use a validation set: choosing on a test "
        "set makes its number worthless.",
    )


@dataclass
class EvaluationConfig:
    """Held-out prompts, answered by the rollout workers of training."""

    every: int = key(0, "Steps between evaluations; 0: only before the first and after the last step.")
    before_training: bool = key(True, "Evaluate the untrained model too.")
    sets: dict[str, str] = key({}, "Name → file of prompts (docs/data.md), or `mini:…`.")
    samples: int = key(1, "Responses per prompt; the metric is their mean.", minimum=1)
    temperature: float = key(0.0, "Sampling temperature; 0 is greedy.")
    top_p: float = key(1.0, "Nucleus of evaluation samples.", minimum=None)
    max_response_tokens: int = key(0, "Limit of a response; 0: that of training.")
    demonstration_loss: bool = key(False, "Also report the loss on the sets' demonstrations.")


@dataclass
class ObserveConfig:
    """What a person sees."""

    trackers: list[str] = key([], "Besides `tensorboard` and `prometheus`: `wandb`, `mlflow`, `trackio`.")
    samples_every: int = key(25, "Steps between tables of sampled responses; 0: none.")
    rollouts_every: int = key(1, "Steps between dumps of rollouts to parquet; 0: none.")


@dataclass
class ClusterConfig:
    """Where the actors live."""

    address: str = key(
        "auto", "`auto`: join the running cluster, else start one here; `local`; or an address."
    )
    placement_timeout_s: float = key(120.0, "Limit for the cluster to make room.", minimum=1)
    pools: dict[str, str] = key(
        {},
        "Actor group (`learner`, `critic`, `rollout`, `verifier`, `reference`) → custom Ray resource of its "
        "nodes. See docs/placement.md.",
    )
    gpu_memory_gib: float = key(80.0, "Memory of one GPU in GiB; a plan that does not fit is refused.")
    colocate: bool = key(
        False,
        "Rollout workers and learner ranks on the same GPUs, for few GPUs. See docs/placement.md.",
    )
    take_turns: bool | None = key(
        None,
        "With `colocate`: engines sleep while the learner trains, whose optimizer leaves the GPU while they "
        "generate. Not set: only where the plan finds no room for both.",
    )

    @property
    def in_turns(self) -> bool:
        """One side's memory leaves the GPUs while the other works; where nobody has decided yet, too."""
        return self.colocate and self.take_turns is not False


@dataclass
class Config:
    """A whole run. Its batches follow from the first three sizes."""

    PAGE: ClassVar[str] = "docs/configuration.md"

    @property
    def context_tokens(self) -> int:
        """The longest sequence that an engine meets: a prompt and its response, in training or an "
        "evaluation."""
        held_out = self.evaluation.max_response_tokens if self.evaluation.sets else 0
        return self.data.max_prompt_tokens + max(self.data.max_response_tokens, held_out)

    prompts_per_step: int = key(128, "Prompts in one step.", minimum=1)
    group_size: int = key(8, "n: rollouts per prompt; 0 for training without rollouts.")
    max_tokens_per_micro_batch: int = key(32768, "Tokens of one forward pass of a learner rank.", minimum=1)
    updates_per_step: int = key(1, "Optimizer steps that one batch of prompts is split into.", minimum=1)
    resume: str = key(
        "never",
        "`never`; `auto`: continue the newest run of this name that has a checkpoint, else start anew; or a "
        "run folder.",
    )
    phases: list[dict[str, Any]] = key(
        [],
        "Stages of the run: `steps` and the keys to replace, as in `{steps: 150, algorithm: {name: sft}}`. "
        "See docs/methods.md.",
    )
    run: RunConfig = section(RunConfig)
    model: ModelConfig = section(ModelConfig)
    data: DataConfig = section(DataConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    reward: RewardConfig = section(RewardConfig)
    selection: SelectionConfig = section(SelectionConfig)
    algorithm: AlgorithmConfig = section(AlgorithmConfig)
    reference: ReferenceConfig = section(ReferenceConfig)
    learner: LearnerConfig = section(LearnerConfig)
    critic: CriticConfig = section(CriticConfig)
    weight_sync: WeightSyncConfig = section(WeightSyncConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    observe: ObserveConfig = section(ObserveConfig)
    cluster: ClusterConfig = section(ClusterConfig)
