"""From words on the command line to what an evaluation asks, before any actor starts. No Ray here.

Everything a user can get wrong is found here: names, files, lengths, references that the reward function cannot use,
k of pass@k. A prompt that does not fit is an error and not left out, since a mean over fewer prompts is
another number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_ray.config.load import load_as, load_run_config
from hpt_ray.config.references import public
from hpt_ray.config.schema import DataConfig, ModelConfig
from hpt_ray.data import mini
from hpt_ray.data.benchmarks import BENCHMARKS, Benchmark, expand
from hpt_ray.data.dataset import PromptSet, load_prompts
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError
from hpt_ray.evaluation.journal import Key
from hpt_ray.evaluation.model import ModelSource, locate_model, settings_of
from hpt_ray.evaluation.schema import EvaluateConfig, check_evaluation
from hpt_ray.evaluation.statistics import check_ks, default_ks
from hpt_ray.learner.model import load_model_config, positions_of
from hpt_ray.reward import check_ground_truth
from hpt_ray.reward.functions.table import ground_truths_of, identity
from hpt_ray.reward.service import check_reward_functions
from hpt_ray.rollout.requests import Sampling
from hpt_ray.utils.plugins import fingerprint


@dataclass(frozen=True)
class Task:
    """One benchmark as it is asked in this evaluation."""

    benchmark: Benchmark
    prompts: PromptSet
    num_samples: int
    sampling: Sampling
    ks: list[int]
    reward_functions: Mapping[str, str]  # by data source
    digest: str  # of the prompts and their references
    max_prompt_tokens: int

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def version(self) -> str | None:
        """Which published file this is, by its number of prompts; None where no known one has as many."""
        return self.benchmark.published.get(len(self.prompts))

    @property
    def as_published(self) -> bool:
        """Whether samples and sampling are those of the benchmark's row."""
        wanted, sampling = self.benchmark.protocol, self.sampling
        published = (self.benchmark.samples, wanted.temperature, wanted.top_p, wanted.max_response_tokens, -1)
        asked = (self.num_samples, sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.top_k)
        return asked == published


@dataclass(frozen=True)
class Plan:
    config: EvaluateConfig
    model: ModelSource
    tasks: list[Task]
    reward_functions: Mapping[str, str]
    # What the run that made the model grades with; None: unknown.
    training_reward_functions: Mapping[str, str] | None
    out: Path

    @property
    def num_samples(self) -> dict[Key, int]:
        return {(task.name, q.id): task.num_samples for task in self.tasks for q in task.prompts}

    @property
    def max_model_len(self) -> int:
        return max(task.max_prompt_tokens + task.sampling.max_tokens for task in self.tasks)

    def identity(self, model: str) -> dict[str, Any]:
        """What decides the response to a prompt and its result; `model` is a fingerprint of the weights."""
        config = self.config
        plugins = {file: fingerprint(Path(file)) for file in config.plugins}
        return {
            "model": model,
            "dtype": config.dtype,
            "config_overrides": config.config_overrides,
            "seed": config.seed,
            "top_k": config.rollout.top_k,
            "engine": config.rollout.engine,
            "require_finished": config.reward.require_finished,
            "benchmarks": {
                task.name: {
                    "prompts": task.digest,
                    "temperature": task.sampling.temperature,
                    "top_p": task.sampling.top_p,
                    "max_response_tokens": task.sampling.max_tokens,
                    "stop_token_ids": list(task.sampling.stop_token_ids),
                    "reward_functions": {
                        source: identity(function) for source, function in task.reward_functions.items()
                    },
                }
                for task in self.tasks
            },
            **({"plugins": plugins} if plugins else {}),  # evaluations of before had no such key
        }


def load_evaluation(path: str | None, words: list[str]) -> EvaluateConfig:
    """The configuration: defaults, then what the model's run says, then the file, then the words.

    Raises `UserError` with one line for every problem found.
    """
    first = load_as(EvaluateConfig, path, words)
    config = load_as(EvaluateConfig, path, words, base=settings_of(locate_model(first.model)))
    check_evaluation(config)
    return config


def make_plan(config: EvaluateConfig) -> Plan:
    """Read every prompt and check it. Raises `UserError` for what the user must change."""
    model = locate_model(config.model)
    tokenizer = load_tokenizer(tokenizer_path(model.path), trust_remote_code=config.trust_remote_code)
    positions = None
    if not mini.is_mini(model.path):
        positions = positions_of(
            load_model_config(model_section(config, model.path), model.path).get_text_config()
        )
    template = Template(config.data, tokenizer)
    check_reward_functions(config.reward)
    names = expand(config.benchmarks)
    rows = [BENCHMARKS[name] for name in names]
    rows += [BENCHMARKS.get(name, Benchmark(name, name)) for name in config.sets if name not in names]
    tasks = [_task(config, row, template) for row in rows]
    for task in tasks:
        _check_context(task, model.path, positions)
    functions = {source: function for task in tasks for source, function in task.reward_functions.items()}
    out = Path(config.out) if config.out else Path("evaluations") / model.name
    return Plan(config, model, tasks, functions, _in_training(model, functions), out)


def _check_context(task: Task, path: str, positions: int | None) -> None:
    prompt, response = task.max_prompt_tokens, task.sampling.max_tokens
    if positions is None or prompt + response <= positions:
        return
    mend = (
        f"max_response_tokens={positions - prompt} or less"
        if prompt < positions
        else "a model for longer texts"
    )
    raise UserError(
        f"{task.name}: prompt and response may have {prompt} + {response} tokens (max_response_tokens), but {path} has "
        f"{positions} positions: take {mend}."
    )


def model_section(config: EvaluateConfig, path: str) -> ModelConfig:
    """The evaluated model as a run's configuration describes one."""
    return ModelConfig(
        path=path,
        dtype=config.dtype,
        config_overrides=config.config_overrides,
        trust_remote_code=config.trust_remote_code,
    )


def _task(config: EvaluateConfig, row: Benchmark, template: Template) -> Task:
    prompts, max_prompt_tokens = _prompts(config, row, template)
    num_samples = config.samples or row.samples
    protocol = row.protocol
    temperature = protocol.temperature if config.temperature is None else config.temperature
    if temperature == 0 and num_samples > 1:
        raise UserError(
            f"{row.name}: at temperature 0 all {num_samples} samples of a prompt are the same: set "
            "`temperature` above 0, or samples=1."
        )
    ks = sorted(set(config.pass_k)) or default_ks(num_samples)
    check_ks(ks, num_samples)
    return Task(
        benchmark=row,
        prompts=prompts,
        num_samples=num_samples,
        sampling=Sampling(
            temperature=temperature,
            top_p=protocol.top_p if config.top_p is None else config.top_p,
            top_k=config.rollout.top_k,
            max_tokens=config.max_response_tokens or protocol.max_response_tokens,
            stop_token_ids=template.stop_token_ids,
        ),
        ks=ks,
        reward_functions=_reward_functions(config, row, prompts),
        digest=_digest(prompts),
        max_prompt_tokens=max_prompt_tokens,
    )


def _prompts(config: EvaluateConfig, row: Benchmark, template: Template) -> tuple[PromptSet, int]:
    """All prompts of a benchmark, and the number of tokens of the longest prompt."""
    path = config.sets.get(row.name)
    if path is None:
        path = row.path if mini.is_mini(row.path) else str(Path(config.data_dir) / row.path)
        if not mini.is_mini(path) and not Path(path).exists():
            raise UserError(
                f"{row.name}: there is no {path}. Make it from the published file:\n"
                f"  python -m hpt_ray.data.prepare {row.name} --source FILE --out {Path(path).parent}\n"
                f"or name a file of prompts: sets.{row.name}=FILE."
            )
    functions = {row.reward_function or config.reward.function, *config.reward.functions.values()}
    found = load_prompts(
        [path],
        template,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=DataConfig().max_response_tokens,
        demonstrations="ignored",
        columns=config.data.columns,
        held_out=True,
        **ground_truths_of(functions),
    )
    if found.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items())
        raise UserError(
            f"{path}: {reasons}, and an evaluation leaves no prompt out. Correct the file, or raise "
            f"data.max_prompt_tokens ({config.data.max_prompt_tokens})."
        )
    return found, int(found.report()["prompt_tokens_max"])


def _reward_functions(config: EvaluateConfig, row: Benchmark, prompts: PromptSet) -> dict[str, str]:
    """Of every data source of the benchmark: `reward.functions`, else the row's, else `reward.function`.

    Raises UserError for a reference that its reward function cannot use.
    """
    found: dict[str, str] = {}
    other = row.reward_function or config.reward.function
    for prompt in prompts:
        function = config.reward.functions.get(prompt.data_source, other)
        if problem := check_ground_truth(prompt.ground_truth, function):
            raise UserError(
                f"{row.name}, prompt {prompt.id}: {problem} (reward function {public(function)})."
            )
        found[prompt.data_source] = function
    return found


def _in_training(model: ModelSource, sources: Iterable[str]) -> dict[str, str] | None:
    """The reward function that the model's own run gives each of these data sources."""
    if model.run is None:
        return None
    reward = load_run_config(model.run / "config.yaml").reward
    return {source: reward.functions.get(source, reward.function) for source in sources}


def _digest(prompts: PromptSet) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.text, prompt.ground_truth]).encode())
        digest.update(prompt.token_ids.tobytes())
    return digest.hexdigest()
