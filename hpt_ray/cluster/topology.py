"""Which actors a run has, where they stand and how they are wired: the topology in one place.

    rollout-0 … (vLLM)   learner-0 … (DeepSpeed)   verifier-0
    reference-0 … (only for KL terms)   critic-0 … (DeepSpeed, only for values)

Everything starts at the same time. Who hangs together fails together: the ranks of learner and critic start
again as one group, a rollout worker starts again by itself (see `hpt_ray.rollout.fleet`), and the verifier
and the reference, which hold nothing that a fresh process does not have, are started again by Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpt_ray.cluster.groups import ActorGroup
from hpt_ray.cluster.runtime import Cluster, Need
from hpt_ray.config.schema import Config, RewardConfig
from hpt_ray.estimators import BatchShape, Estimator
from hpt_ray.learner.critic import CriticSpec, CriticWorker, optimizer_of
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.learner.worker import LearnerSpec, LearnerWorker
from hpt_ray.reference.worker import ReferenceSpec, ReferenceWorker
from hpt_ray.reward import VerifierService
from hpt_ray.rollout.engine import EngineSpec
from hpt_ray.rollout.fleet import Fleet
from hpt_ray.rollout.worker import RolloutWorker
from hpt_ray.setup import Prepared
from hpt_ray.weight_sync.transaction import WeightSync

# The verifier grades many small batches at the same time in one actor.
VERIFIER_CONCURRENCY = 1000
ROLLOUT_CONCURRENCY = 100
# Ray starts such an actor again by itself, and asks it again what was not answered.
STATELESS = {"max_restarts": -1, "max_task_retries": -1}


@dataclass(frozen=True)
class Actors:
    """The running actor groups. Those that a run does not need are None."""

    learners: ActorGroup
    fleet: Fleet | None
    verifier: ActorGroup | None
    reference: ActorGroup | None
    critic: ActorGroup | None

    @property
    def ranks(self) -> list[ActorGroup]:
        """The groups that train."""
        return [group for group in (self.learners, self.critic) if group is not None]

    async def restart_ranks(self, timeout_s: float) -> None:
        """Fresh processes for learner and critic, with the model as training starts."""
        for group in self.ranks:
            group.restart()
        await asyncio.gather(*(start_ranks(group, timeout_s) for group in self.ranks))

    def stop(self) -> None:
        if self.fleet is not None:
            self.fleet.stop()
        for group in (*self.ranks, self.verifier, self.reference):
            if group is not None:
                group.kill()


def needs(config: Config, estimator: Estimator, *, with_rollouts: bool) -> list[Need]:
    """The room a run asks for, group by group."""
    room = [Need("learner", config.learner.num_ranks, config.learner.num_cpus, config.learner.num_gpus)]
    if with_rollouts:
        rollout = config.rollout
        room.append(Need("rollout", rollout.num_workers, rollout.num_cpus, rollout.num_gpus))
        room.append(Need("verifier", 1, config.reward.num_cpus, 0.0))
    if estimator.needs_reference:
        reference = config.reference
        room.append(Need("reference", reference.num_workers, reference.num_cpus, reference.num_gpus))
    if estimator.needs_values:
        critic = config.critic
        room.append(Need("critic", critic.num_ranks, critic.num_cpus, critic.num_gpus))
    return room


async def start_actors(
    cluster: Cluster,
    config: Config,
    *,
    model_path: str,
    estimator: Estimator,
    with_rollouts: bool,
    logs: Path,
) -> Actors:
    """Reserve room, start every actor, load every model.

    Raises `UserError` where there is no room or a model cannot be used, `WaitExpired` where an actor
    does not come up in time.
    """
    await cluster.reserve(
        needs(config, estimator, with_rollouts=with_rollouts),
        timeout_s=config.cluster.placement_timeout_s,
        name=f"hpt_ray:{config.run.name}",
    )
    seed, temperature, limit = config.run.seed, config.rollout.temperature, config.learner.timeout_s
    learner_spec = LearnerSpec(config.model, model_path, config.learner, estimator, temperature, seed)
    num_ranks = config.learner.num_ranks
    learners = cluster.create(
        "learner",
        LearnerWorker,
        [(rank, num_ranks, learner_spec, log_file(logs, "learner", rank)) for rank in range(num_ranks)],
    )
    fleet = verifier = reference = critic = None
    starting: list[Awaitable[Any]] = [start_ranks(learners, limit)]
    if with_rollouts:
        spec = EngineSpec(
            model=config.model,
            model_path=model_path,
            rollout=config.rollout,
            max_model_len=config.data.max_prompt_tokens + config.data.max_response_tokens,
            seed=seed,
        )
        sync = WeightSync(
            learners,
            config.weight_sync,
            carrier_of(config),
            workers_per_engine=config.rollout.tensor_parallel,
            # Where the learner may have stepped before a restarted worker asks for what is committed.
            keep_committed=config.updates_per_step > 1 or config.rollout.max_staleness > 0,
        )
        fleet = make_fleet(cluster, spec, sync, logs)
        verifier = make_verifier(cluster, config.reward, config.data.max_response_tokens)
        starting.append(fleet.start())
        starting.append(verifier.call("counts", timeout_s=config.rollout.start_timeout_s, what="start"))
    if estimator.needs_reference:
        # A reference of its own is read as it is; else it is the policy as training starts.
        reference_model = config.model
        if config.reference.path is not None:
            reference_model = replace(config.model, path=config.reference.path, random_init=False)
        reference_spec = ReferenceSpec(
            reference_model, config.reference.path or model_path, config.reference, temperature, seed
        )
        reference = cluster.create(
            "reference",
            ReferenceWorker,
            [(reference_spec, log_file(logs, "reference", i)) for i in range(config.reference.num_workers)],
            **STATELESS,
        )
        starting.append(reference.call("start", timeout_s=limit, what="load the model"))
    if estimator.needs_values:
        optimizer = optimizer_of(config)
        critic_spec = CriticSpec(config.model, model_path, optimizer, config.critic.value_clip, seed)
        num_critics = optimizer.num_ranks
        critic = cluster.create(
            "critic",
            CriticWorker,
            [(rank, num_critics, critic_spec, log_file(logs, "critic", rank)) for rank in range(num_critics)],
        )
        starting.append(start_ranks(critic, limit))
    await asyncio.gather(*starting)
    return Actors(learners, fleet, verifier, reference, critic)


def make_fleet(cluster: Cluster, spec: EngineSpec, sync: WeightSync | None, logs: Path) -> Fleet:
    """The rollout workers, coming up."""
    count = range(spec.rollout.num_workers)
    make = cluster.maker(
        "rollout",
        RolloutWorker,
        # Engines that share a seed would draw the same answers to unseeded requests.
        [(replace(spec, seed=spec.seed + i), log_file(logs, "rollout", i)) for i in count],
        max_concurrency=ROLLOUT_CONCURRENCY,
    )
    return Fleet(make, len(count), spec.rollout, sync)


def make_verifier(cluster: Cluster, reward: RewardConfig, max_response_tokens: int) -> ActorGroup:
    """The verifier service, coming up."""
    arguments = [(reward, max_response_tokens)]
    return cluster.create(
        "verifier", VerifierService, arguments, max_concurrency=VERIFIER_CONCURRENCY, **STATELESS
    )


def learner_group(config: Config, prepared: Prepared, actors: Actors) -> LearnerGroup:
    """The ranks as one optimizer."""
    return LearnerGroup(
        actors.learners,
        prepared.estimator,
        batch=BatchShape(
            num_questions=config.questions_per_step // config.updates_per_step,
            num_rollouts=prepared.num_rollouts,
            max_response_tokens=config.data.max_response_tokens,
        ),
        tokens_per_microbatch=config.tokens_per_microbatch,
        timeout_s=config.learner.timeout_s,
        reference=actors.reference,
        critic=actors.critic,
        updates_per_step=config.updates_per_step,
        recompute_old_logps=config.learner.recompute_old_logps,
    )


async def start_ranks(ranks: ActorGroup, timeout_s: float) -> None:
    """Let the ranks meet and load their model."""
    host, port = (await ranks.call("rendezvous", timeout_s=timeout_s, what="come up"))[0]
    await ranks.call("start", host, port, timeout_s=timeout_s, what="load the model")


def log_file(logs: Path, kind: str, i: int) -> str:
    return str((logs / f"{kind}-{i}.log").resolve())


def carrier_of(config: Config) -> str:
    """The carrier `auto` stands for: NCCL where both ends have GPUs."""
    if config.weight_sync.carrier != "auto":
        return config.weight_sync.carrier
    return "nccl" if config.rollout.num_gpus > 0 and config.learner.num_gpus > 0 else "gloo"
