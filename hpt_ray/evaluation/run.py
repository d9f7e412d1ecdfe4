"""The evaluation itself: rollout workers and the verifier of training, without a learner.

Responses are asked for in chunks that fill the engines once. Two chunks are under way at any time, so the
long responses at the end of one do not keep the engines waiting. Each response is graded as it comes and
written to the journal; its text is then forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.runtime import Cluster, ResourceRequest
from hpt_ray.evaluation.journal import Journal
from hpt_ray.evaluation.plan import Plan, Task, model_section
from hpt_ray.reward.actor import make_verifier
from hpt_ray.reward.groups import graded_groups
from hpt_ray.rollout.engine import EngineSpec
from hpt_ray.rollout.engine_group import EngineGroup, make_engine_group
from hpt_ray.rollout.requests import GenerateRequest, sampling_seed
from hpt_ray.rollout.router import Router
from hpt_ray.types import FinishReason, Prompt

CHUNKS_UNDER_WAY = 2

Job = tuple[int, int]  # prompt, sample


@dataclass(frozen=True)
class Workers:
    engines: EngineGroup
    verifier: ActorGroup

    def stop(self) -> None:
        self.engines.stop()
        self.verifier.kill()


async def start_workers(cluster: Cluster, plan: Plan, model_path: str, logs: Path) -> Workers:
    """Reserve room, start the engines with the model's own weights and the verifier.

    Raises `UserError` where there is no room, `WaitExpired` where an engine does not come up in time.
    """
    config, rollout = plan.config, plan.config.rollout
    pools = config.cluster.pools
    await cluster.reserve(
        [
            ResourceRequest(
                "rollout", rollout.num_workers, rollout.num_cpus, rollout.num_gpus, pools.get("rollout")
            ),
            ResourceRequest("verifier", 1, config.reward.num_cpus, 0.0, pools.get("verifier")),
        ],
        timeout_s=config.cluster.placement_timeout_s,
        name=f"hpt_ray:evaluate:{plan.model.name}",
    )
    spec = EngineSpec(
        model=model_section(config, plan.model.path),
        model_path=model_path,
        rollout=rollout,
        max_model_len=plan.max_model_len,
        seed=config.seed,
        load_weights=True,
    )
    engines = make_engine_group(cluster, spec, None, logs)
    reward = replace(config.reward, functions=dict(plan.reward_functions))
    longest = max(task.sampling.max_tokens for task in plan.tasks)
    verifier = make_verifier(cluster, reward, longest, logs)
    await asyncio.gather(
        engines.start(), verifier.call("counts", timeout_s=rollout.start_timeout_s, what="start")
    )
    return Workers(engines, verifier)


async def sample_missing(
    plan: Plan, journal: Journal, workers: Workers, on_response: Callable[[], None]
) -> int:
    """Sample, grade and write down every response that the journal does not have; how many were lost.

    A lost response (its worker failed for good) is not counted as wrong: it stays missing.
    """
    config = plan.config
    router = Router(
        workers.engines, max_num_seqs=config.rollout.max_num_seqs, timeout_s=config.rollout.timeout_s
    )
    chunks = _chunks(plan, journal, config.rollout.num_workers * config.rollout.max_num_seqs)
    num_lost = 0

    async def work() -> None:
        nonlocal num_lost
        for task, jobs in chunks:  # one iterator for all: each takes the next chunk
            drawn = {i: task.prompts[i] for i, _ in jobs}
            job_of = {f"{task.name}/{i}/{sample}": (drawn[i], sample) for i, sample in jobs}
            async for group in graded_groups(
                router.generate(
                    [_request(key, *job, config.seed) for key, job in job_of.items()], task.sampling
                ),
                {key: prompt for key, (prompt, _) in job_of.items()},
                num_samples=1,
                verifier=workers.verifier,
                timeout_s=config.rollout.timeout_s,
            ):
                (rollout,), (result,) = group.rollouts, group.results
                if rollout.finish is FinishReason.LOST:
                    num_lost += 1
                    continue
                prompt, sample = job_of[rollout.prompt_id]
                journal.add(task.name, prompt, sample, rollout, result, keep_text=config.keep_texts)
                on_response()

    await asyncio.gather(*(work() for _ in range(CHUNKS_UNDER_WAY)))
    return num_lost


def _request(key: str, prompt: Prompt, sample: int, seed: int) -> GenerateRequest:
    """One response as a request of its own. Its seed depends on what is asked, not on when or together with what."""
    seeds = (sampling_seed(seed, "evaluate", prompt.id, sample),)
    return GenerateRequest(key, prompt.token_ids, samples=(0,), seeds=seeds)


def _chunks(plan: Plan, journal: Journal, size: int) -> Iterator[tuple[Task, list[Job]]]:
    """What is missing, benchmark by benchmark, `size` responses at a time."""
    for task in plan.tasks:
        missing = journal.missing([(task.name, prompt.id) for prompt in task.prompts])
        while jobs := list(islice(missing, size)):
            yield task, jobs
