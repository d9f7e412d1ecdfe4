"""Which actors a run has, where they stand and how they are wired: the topology in one place.

    rollout-0 … (vLLM)   learner-0 … (DeepSpeed)   verifier-0
    reference-0 … (only for KL terms)   critic-0 … (DeepSpeed, only for values)

Everything starts at the same time, but for ranks that take turns with engines on their GPUs (`cluster.take_turns`):
those start once the engines have measured their memory and sleep. Who hangs together fails together: the ranks
of learner and critic start again as one group, a rollout worker starts again by itself (see
`hpt_ray.rollout.engine_group`), and the verifier and the reference, which hold nothing that a fresh process does not
have, are started again by Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpt_ray.algorithms import BatchShape
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.process import log_file
from hpt_ray.cluster.runtime import Cluster, ResourceRequest
from hpt_ray.config.phases import phases_of
from hpt_ray.config.schema import Config
from hpt_ray.driver.setup import PreparedPhase, Roles
from hpt_ray.learner.base import RankSpec
from hpt_ray.learner.critic import CriticSpec, CriticWorker, optimizer_of
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.learner.policy import LearnerSpec, LearnerWorker
from hpt_ray.learner.reference import ReferenceSpec, ReferenceWorker
from hpt_ray.reward.actor import STATELESS, make_verifier
from hpt_ray.rollout.engine import EngineSpec
from hpt_ray.rollout.engine_group import EngineGroup, make_engine_group
from hpt_ray.rollout.router import Router
from hpt_ray.types import Group
from hpt_ray.weight_sync.backends import backend_of
from hpt_ray.weight_sync.transaction import WeightSync


class Turns:
    """Who has the GPUs: always both sides, or the rollout workers and the learner ranks in turns.

    With `cluster.colocate` a rank and an engine stand on the same GPU. Where there is room for one at a time:

        generate ─▶ engines sleep ─▶ ranks reload ─▶ learn ─▶ ranks offload ─▶ weights wake, sync, cache wakes ─▶

    Parameters of the learner stay on the GPU in both turns; what moves is the rest. Where both sides stay (`taken`
    false), or without rollout workers, nothing here waits for anything.
    """

    def __init__(self, learners: ActorGroup, engines: EngineGroup | None, *, taken: bool, timeout_s: float):
        self._learners, self._engines, self._timeout_s = learners, engines, timeout_s
        self.taken = taken and engines is not None

    async def groups(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """The groups for the learner: as they come, or all of them once the engines sleep."""
        if not self.taken:
            async for group in groups:
                yield group
            return
        collected = [group async for group in groups]
        await self.free_engines()
        await self._learners.call("reload", timeout_s=self._timeout_s, what="reload the optimizer state")
        for group in collected:
            yield group

    async def free_engines(self) -> None:
        """The engines give up their memory, until the next push. Nobody may be waiting for rollouts."""
        if self.taken:
            assert self._engines is not None
            await self._engines.sleep()

    async def push(self, version: int) -> float:
        """The learner's weights, under `version`, to every rollout worker; seconds the sync took."""
        if self._engines is None:
            return 0.0
        if self.taken:
            await self._learners.call(
                "offload", timeout_s=self._timeout_s, what="offload the optimizer state"
            )
        return await self._engines.push(version)


@dataclass(frozen=True)
class Actors:
    """The running actor groups. Those that a run does not need are None."""

    learners: ActorGroup
    turns: Turns
    engines: EngineGroup | None
    router: Router | None
    verifier: ActorGroup | None
    reference: ActorGroup | None
    critic: ActorGroup | None

    @property
    def ranks(self) -> list[ActorGroup]:
        """The groups that train."""
        return [group for group in (self.learners, self.critic) if group is not None]

    @property
    def all_ranks(self) -> ActorGroup:
        return sum(self.ranks, ActorGroup([], []))

    @property
    def faults(self) -> Counter[str]:
        """What failed on the side of the rollouts, and was mended, so far."""
        sides = (self.engines, self.router)
        return sum((side.faults for side in sides if side is not None), Counter())

    @property
    def aborted_tokens(self) -> int:
        """Sampled for rollouts that were then aborted, so far."""
        return 0 if self.router is None else self.router.aborted_tokens

    async def restart_ranks(self, cluster: Cluster, config: Config) -> None:
        """Fresh processes for learner and critic, with the model as training starts.

        Raises `UserError` where their room was lost with a node and does not come back.
        """
        await self.turns.free_engines()
        for group in self.ranks:
            group.restart()
        for group in self.ranks:
            await cluster.place(group, timeout_s=config.cluster.placement_timeout_s)
        if self.engines is not None and (gpus := await gpus_of_engines(config, self.learners)):
            self.engines.use_gpus(gpus)
        await asyncio.gather(*(start_ranks(group, config.learner.timeout_s) for group in self.ranks))

    def stop(self) -> None:
        if self.engines is not None:
            self.engines.stop()
        for group in (*self.ranks, self.verifier, self.reference):
            if group is not None:
                group.kill()


def resource_requests(config: Config, roles: Roles) -> list[ResourceRequest]:
    """The room a run asks for, group by group.

    With `cluster.colocate` the GPUs are reserved for the ranks, and an engine uses those of its bundle.
    """
    learner, rollout = config.learner, config.rollout
    shared = config.cluster.colocate and roles.rollouts
    requests = [
        ResourceRequest(
            "learner",
            learner.num_ranks,
            learner.num_cpus,
            learner.num_gpus,
            beside="rollout" if shared else None,
        )
    ]
    if roles.rollouts:
        gpus = 0.0 if shared else rollout.num_gpus
        requests.append(ResourceRequest("rollout", rollout.num_workers, rollout.num_cpus, gpus))
        requests.append(ResourceRequest("verifier", 1, config.reward.num_cpus, 0.0))
    if roles.reference:
        reference = config.reference
        requests.append(
            ResourceRequest("reference", reference.num_workers, reference.num_cpus, reference.num_gpus)
        )
    if roles.critic:
        critic = config.critic
        requests.append(ResourceRequest("critic", critic.num_ranks, critic.num_cpus, critic.num_gpus))
    return [replace(request, pool=config.cluster.pools.get(request.kind)) for request in requests]


async def start_actors(
    cluster: Cluster,
    config: Config,
    *,
    model_path: str,
    roles: Roles,
    logs: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Actors:
    """Reserve room, start every actor, load every model. The ranks train once a phase is begun.

    `say` hears what is waited for. Raises `UserError` where there is no room or a model cannot be used,
    `WaitExpired` where an actor does not come up in time.
    """
    say("starting · room for the actors")
    await cluster.reserve(
        resource_requests(config, roles),
        timeout_s=config.cluster.placement_timeout_s,
        name=f"hpt_ray:{config.run.name}",
    )
    if config.run.deterministic or config.model.batch_invariant:
        config = with_one_thread(config)
    seed, temperature, limit = config.run.seed, config.rollout.temperature, config.learner.timeout_s
    learner_spec = LearnerSpec(config.model, model_path, config.learner, seed, None, temperature)
    learners = make_ranks(cluster, "learner", LearnerWorker, learner_spec, logs)
    engines = verifier = reference = critic = None
    starting: dict[str, Awaitable[Any]] = {}
    if roles.rollouts:
        engines = await make_engines(cluster, config, model_path, learners, logs)
        verifier = make_verifier(cluster, config.reward, config.data.max_response_tokens, logs)
        timeout_s = config.rollout.start_timeout_s
        starting["verifier"] = verifier.call("counts", timeout_s=timeout_s, what="start")
    turns = Turns(learners, engines, taken=config.cluster.in_turns, timeout_s=limit)
    if turns.taken and engines is not None:
        starting["vLLM engines and then learner ranks"] = start_in_turns(learners, engines, turns, limit)
    else:
        starting["learner ranks"] = start_ranks(learners, limit)
        if engines is not None:
            starting["vLLM engines"] = engines.start()
    if roles.reference:
        reference = make_reference(cluster, config, model_path, logs)
        starting["reference"] = reference.call("start", timeout_s=limit, what="load the model")
    if roles.critic:
        critic_spec = CriticSpec(
            config.model, model_path, optimizer_of(config), seed, config.critic.value_clip
        )
        critic = make_ranks(cluster, "critic", CriticWorker, critic_spec, logs)
        starting["critic ranks"] = start_ranks(critic, limit)
    await all_started(starting, say)
    router = None
    if engines is not None:
        router = Router(
            engines,
            max_num_seqs=config.rollout.max_num_seqs,
            timeout_s=config.rollout.timeout_s,
            in_advance=config.run.deterministic,
        )
    return Actors(learners, turns, engines, router, verifier, reference, critic)


async def all_started(starting: Mapping[str, Awaitable[Any]], say: Callable[[str], None]) -> None:
    """Wait for all, and say every second for which. The first failure ends the wait with that failure."""
    names = {asyncio.ensure_future(work): name for name, work in starting.items()}
    pending, began_s = set(names), time.monotonic()
    try:
        while pending:
            waits = ", ".join(name for task, name in names.items() if task in pending)
            say(f"starting · {waits} ({time.monotonic() - began_s:.0f} s)")
            done, pending = await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in pending:
            task.cancel()


def make_ranks(cluster: Cluster, kind: str, worker: type, spec: RankSpec, logs: Path) -> ActorGroup:
    """The ranks of one optimizer, coming up."""
    count = spec.learner.num_ranks
    return cluster.create(
        kind, worker, [(rank, count, spec, log_file(logs, kind, rank)) for rank in range(count)]
    )


async def make_engines(
    cluster: Cluster, config: Config, model_path: str, learners: ActorGroup, logs: Path
) -> EngineGroup:
    """The rollout workers, coming up, and the way the learners' weights come to them."""
    spec = EngineSpec(
        model=config.model,
        model_path=model_path,
        rollout=config.rollout,
        max_model_len=config.context_tokens,
        seed=config.run.seed,
        sleeps=config.cluster.in_turns,
    )
    sync = WeightSync(
        learners,
        config.weight_sync,
        backend_of(config),
        workers_per_engine=config.rollout.tensor_parallel,
        # Where the learner may have stepped before a restarted worker asks for what is committed.
        keep_committed=config.rollout.max_off_policy_steps > 0
        or any(phase.config.updates_per_step > 1 for phase in phases_of(config)),
    )
    return make_engine_group(cluster, spec, sync, logs, await gpus_of_engines(config, learners))


def make_reference(cluster: Cluster, config: Config, model_path: str, logs: Path) -> ActorGroup:
    """The frozen policy, coming up. A model of its own is read as it is; else it is the policy as training starts."""
    model, reference = config.model, config.reference
    if reference.path is not None:
        model, model_path = replace(model, path=reference.path, random_init=False), reference.path
    spec = ReferenceSpec(model, model_path, reference, config.rollout.temperature, config.run.seed)
    arguments = [(spec, log_file(logs, "reference", i)) for i in range(reference.num_workers)]
    return cluster.create("reference", ReferenceWorker, arguments, **STATELESS)


def with_one_thread(config: Config) -> Config:
    """Actors told of no more than one CPU: with several threads not every start computes the same bits."""
    sections = {name: getattr(config, name) for name in ("learner", "critic", "reference", "rollout")}
    limited = {name: replace(part, num_cpus=min(1.0, part.num_cpus)) for name, part in sections.items()}
    return replace(config, **limited)


async def gpus_of_engines(config: Config, learners: ActorGroup) -> list[str] | None:
    """For each rollout worker the GPUs of the ranks in its bundle, as CUDA names them; None where it has its own."""
    if not config.cluster.colocate or config.rollout.num_gpus == 0:
        return None
    seen = await learners.call("visible_gpus", timeout_s=config.learner.timeout_s, what="come up")
    size = config.rollout.tensor_parallel
    return [",".join(seen[i : i + size]) for i in range(0, len(seen), size)]


async def start_in_turns(learners: ActorGroup, engines: EngineGroup, turns: Turns, timeout_s: float) -> None:
    """Engines, and once they sleep the ranks that share their GPUs."""
    await engines.start()
    await turns.free_engines()
    await start_ranks(learners, timeout_s)


async def learner_of(phase: PreparedPhase, actors: Actors, *, begins: bool) -> LearnerGroup:
    """The ranks as one optimizer of the phase's algorithm; its state is empty where the phase `begins`."""
    config, limit = phase.config, phase.config.learner.timeout_s
    await actors.learners.call("train_with", phase.estimator, timeout_s=limit)
    if begins:
        for ranks in actors.ranks:
            await ranks.call("forget_optimizer", timeout_s=limit)
    return LearnerGroup(
        actors.learners,
        phase.estimator,
        batch=BatchShape(
            num_prompts=config.prompts_per_step // config.updates_per_step,
            num_rollouts=phase.num_rollouts,
            max_response_tokens=config.data.max_response_tokens,
        ),
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        timeout_s=limit,
        reference=(actors.reference or actors.learners) if phase.estimator.needs_reference else None,
        critic=actors.critic if phase.estimator.needs_values else None,
        updates_per_step=config.updates_per_step,
        recompute_old_logprobs=config.learner.recompute_old_logprobs,
        sequence_parallel=config.learner.sequence_parallel,
    )


async def start_ranks(ranks: ActorGroup, timeout_s: float) -> None:
    """Let the ranks join and load their model."""
    meeting = (await ranks.call("rendezvous", timeout_s=timeout_s, what="come up"))[0]
    await ranks.call("start", meeting, timeout_s=timeout_s, what="load the model")
