"""The keys of `python -m hpt_ray.cli.evaluate`: its own, and sections of training under the names they have there.

What an evaluation has no use for in those sections, such as `data.train`, is refused and not passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

from hpt_ray.config.checks import wrong_pools
from hpt_ray.config.load import known_keys
from hpt_ray.config.schema import ClusterConfig, DataConfig, RewardConfig, RolloutConfig, key, section
from hpt_ray.errors import UserError


@dataclass
class EvaluateConfig:
    """An evaluation of one model."""

    PAGE: ClassVar[str] = "docs/evaluation.md"

    model: str = key(
        "???", "Model folder, Hub name, `mini:SIZE`, run folder (its newest checkpoint) or checkpoint."
    )
    benchmarks: list[str] = key(
        [],
        "Benchmarks of the table, or its groups `math`, `ood`, `mini`, `mini-ood`, `mini-test`, `mini-test-ood`.",
    )
    sets: dict[str, str] = key(
        {}, "Name → file of prompts (docs/data.md) or `mini:…`; under a benchmark's name: its prompts."
    )
    data_dir: str = key("data/benchmarks", "Folder that benchmarks were prepared into.")
    out: str | None = key(None, "Folder of the results. Default: evaluations/NAME-OF-THE-MODEL.")
    samples: int | None = key(None, "Samples per prompt. Default: the benchmark's.", minimum=1)
    temperature: float | None = key(
        None, "Sampling temperature; 0 is greedy. Default: the benchmark's.", minimum=0
    )
    top_p: float | None = key(None, "Nucleus. Default: the benchmark's.", minimum=0)
    max_response_tokens: int | None = key(None, "Limit of a response. Default: the benchmark's.", minimum=1)
    pass_k: list[int] = key(
        [], "The k of pass@k, at most `samples`. Default: the powers of two up to `samples`.", minimum=1
    )
    seed: int = key(0, "Seed of sampling.", minimum=0)
    keep_texts: bool = key(
        False, "Keep every response's text, its prompt and what was read as its answer, in samples.jsonl."
    )
    dtype: str = key("float32", "Precision of the engine.", choices=("float32", "bfloat16"))
    config_overrides: dict[str, Any] = key({}, "Keys of the model's config.json to replace.")
    trust_remote_code: bool = key(False, "Run Python code that comes with the model.")
    plugins: list[str] = key(
        [],
        "Python files of yours whose parts (reward functions, architecture rules) may be named. Default: the run's.",
    )
    data: DataConfig = section(DataConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    reward: RewardConfig = section(RewardConfig)
    cluster: ClusterConfig = section(ClusterConfig)


# Keys of training that mean nothing here → what to set instead.
NOT_HERE = {
    "data.train": "name files in `sets`",
    "data.rehearsal": "nothing is trained",
    "data.rehearsal_per_step": "nothing is trained",
    "data.shuffle": "prompts are sampled in the files' order",
    "data.max_response_tokens": "set `max_response_tokens`",
    "rollout.temperature": "set `temperature`",
    "rollout.top_p": "set `top_p`",
    "reward.terms": "an evaluation counts correct responses only",
    "cluster.colocate": "an evaluation has no learner",
}


def check_evaluation(config: EvaluateConfig) -> None:
    """Raise a `UserError` with one line for every rule that `config` breaks."""
    known = known_keys(EvaluateConfig)
    problems = []
    for name, instead in NOT_HERE.items():
        if attrgetter(name)(config) != known[name].default:
            problems.append(f"`{name}` is a key of training and has no meaning here: {instead}.")
    if not config.benchmarks and not config.sets:
        problems.append("Nothing to evaluate: name `benchmarks`, as in benchmarks=[aime24], or `sets`.")
    if config.top_p is not None and not 0 < config.top_p <= 1:
        problems.append(f"`top_p` ({config.top_p:g}) must be above 0 and at most 1.")
    problems += wrong_pools(config.cluster)
    if problems:
        raise UserError("\n".join(problems))
