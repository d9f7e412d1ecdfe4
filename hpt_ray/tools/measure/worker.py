"""The meter over several processes: each measures some of the prompts, with a model of its own.

A prompt's rollouts are seeded by its id, so that who measures it changes nothing but rounding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpt_ray.cluster.actor_group import wait_all
from hpt_ray.cluster.process import log_file, prepare_process
from hpt_ray.cluster.runtime import Cluster, ResourceRequest
from hpt_ray.config.schema import Config
from hpt_ray.driver.setup import loader
from hpt_ray.tools.measure.gradients import Method
from hpt_ray.tools.measure.run import Measured, Measurer, RewardFunctions, Sizes
from hpt_ray.types import Prompt

KIND = "meter"


@dataclass(frozen=True)
class Measurement:
    """What is measured on each prompt. `sampler`: folder of the policy that the measured rollouts come from."""

    config: Config
    tokenizer: str
    model: str  # folder
    sampler: str | None
    methods: Mapping[str, Method]
    sizes: Sizes

    def measurer(self, rewards: RewardFunctions) -> Measurer:
        """With its models loaded into this process."""
        from hpt_ray.tools.measure.policy import Policy  # a worker has set its process up first

        template, _ = loader(self.config, self.tokenizer)
        policy = Policy(self.config, self.model, template)
        sampler = policy if self.sampler is None else Policy(self.config, self.sampler, template)
        return Measurer(policy, sampler, rewards, self.methods, self.sizes, self.config.run.seed)


class MeterWorker:
    """One process, on as many cores and GPUs as a learner rank."""

    def __init__(self, measurement: Measurement, log_file: str):
        prepare_process(threads=measurement.config.learner.num_cpus, log_file=log_file)
        self._measurer = measurement.measurer(RewardFunctions(measurement.config))

    def measure(self, prompt: Prompt) -> Measured:
        return self._measurer.measure(prompt)


def measured_by_workers(
    measurement: Measurement, prompts: Sequence[Prompt], count: int, logs: Path
) -> Iterator[Measured]:
    """Every prompt, in order. Raises `UserError` where there is no room, and what a worker raises."""
    config = measurement.config
    logs.mkdir(parents=True, exist_ok=True)
    cluster = Cluster.connect(config.cluster)
    try:
        request = ResourceRequest(
            KIND, count, config.learner.num_cpus, config.learner.num_gpus, config.cluster.pools.get("learner")
        )
        room = cluster.reserve(
            [request], timeout_s=config.cluster.placement_timeout_s, name="hpt_ray:measure"
        )
        asyncio.run(room)
        arguments = [(measurement, log_file(logs, KIND, i)) for i in range(count)]
        workers = cluster.create(KIND, MeterWorker, arguments)
        refs = [workers.actors[i % count].measure.remote(prompt) for i, prompt in enumerate(prompts)]
        for i, ref in enumerate(refs):
            names, limit = [workers.names[i % count]], config.learner.timeout_s
            yield asyncio.run(wait_all([ref], names=names, what="measure a prompt", timeout_s=limit))[0]
    finally:
        cluster.close()
