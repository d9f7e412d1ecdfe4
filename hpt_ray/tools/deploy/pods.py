"""Which pods a run needs: what its actors reserve, spread over nodes of a given size.

In: the configuration and the size of a node. Out: groups of equal pods. What is spread is what the run itself
reserves, `hpt_ray.driver.actors.resource_requests`, so the pods and the run cannot disagree. Nothing here knows YAML.

    all actors fit on one node     one pod, the head
    else                           a head with the verifier, and pods of their own for each actor group; groups
                                   that `cluster.pools` puts on the same resource share their pods

Pods of a group are equal: each has room for ⌈count / pods⌉ actors of every kind in it. So there is always a way
to place the actors, and no GPU is asked for and left idle where the counts divide.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from hpt_ray.cluster.runtime import ResourceRequest, lay_out
from hpt_ray.config.schema import Config
from hpt_ray.driver.actors import resource_requests
from hpt_ray.driver.setup import roles_of
from hpt_ray.errors import UserError

HEAD = "head"
RAY_CPUS = 1  # of each pod, for Ray's own processes; on the head also for the driver


@dataclass(frozen=True)
class NodeSize:
    """What one Kubernetes node can give to one pod: CPU cores and GPUs."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class PodGroup:
    """`replicas` equal pods, each with room for `actors[kind]` actors of a kind.

    Example: `PodGroup("learner", 2, {"learner": 8}, cpus=8, gpus=8, pool="learner")`. `cpus` and `gpus` are what
    Ray offers in one pod; `pool` is the custom resource that the Ray node in it has.
    """

    name: str
    replicas: int
    actors: dict[str, int]
    cpus: int
    gpus: int
    pool: str | None

    @property
    def label(self) -> str:
        """The pods' `ray.io/group`, which KubeRay sets."""
        return "headgroup" if self.name == HEAD else slug(self.name)


@dataclass(frozen=True)
class Pods:
    """The head and the groups of workers, and the configuration whose actors stand on them."""

    head: PodGroup
    workers: list[PodGroup]
    config: Config

    @property
    def groups(self) -> list[PodGroup]:
        return [self.head, *self.workers]


def slug(text: str) -> str:
    """A name as Kubernetes takes it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def plan_pods(config: Config, node: NodeSize) -> Pods:
    """The pods of the run. Where there are several, the configuration that comes back names their pools.

    Raises `UserError` where one actor is larger than a node.
    """
    requests = resource_requests(config, roles_of(config))
    if not config.cluster.pools and _fits(pod := _pod(HEAD, requests, 1, pool=None), node):
        return Pods(pod, [], config)
    pools = {request.kind: request.beside or request.kind for request in requests}
    pools = pools | {kind: HEAD for kind in pools if kind == "verifier"} | config.cluster.pools
    config = replace(config, cluster=replace(config.cluster, pools=pools))
    members: dict[str, list[ResourceRequest]] = {HEAD: []}
    for request in requests:
        members.setdefault(pools[request.kind], []).append(request)
    groups = {pool: _spread(pool, group, node) for pool, group in members.items()}
    head = groups.pop(HEAD)
    if head.replicas > 1:
        raise UserError(f"There is one head, but cluster.pools puts more on `{HEAD}` than a node has.")
    return Pods(head, list(groups.values()), config)


def _spread(pool: str, members: list[ResourceRequest], node: NodeSize) -> PodGroup:
    """The fewest equal pods that hold all `members`."""
    most = max((request.count for request in members), default=1)
    for replicas in range(1, most + 1):
        if _fits(pod := _pod(pool, members, replicas, pool=pool), node):
            return pod
    asked = " and ".join(
        f"{request.kind} with {request.cpus:g} CPU and {request.gpus:g} GPU" for request in members
    )
    raise UserError(
        f"A node with {node.cpus} CPU and {node.gpus} GPU is too small for one {asked} (and {RAY_CPUS} CPU for "
        f"Ray). Lower {', '.join(_keys(members))}, or say how large your nodes are with --cpus-per-node and "
        "--gpus-per-node."
    )


def _pod(name: str, members: list[ResourceRequest], replicas: int, *, pool: str | None) -> PodGroup:
    """One of `replicas` equal pods that hold all `members`."""
    actors: dict[str, int] = {}
    cpus, gpus = 0.0, 0
    for host in members:
        if host.beside is not None:
            continue
        together = [host, *(request for request in members if request.beside == host.kind)]
        count = math.ceil(host.count / replicas)  # of its bundles, in one pod
        bundle = next(iter(lay_out(together)[0]), {})
        cpus += bundle.get("CPU", 0.0) * count
        gpus += _whole_gpus(bundle.get("GPU", 0.0), count)
        actors |= {request.kind: request.count // host.count * count for request in together}
    return PodGroup(name, replicas, actors, math.ceil(cpus), gpus, pool)


def _whole_gpus(each: float, count: int) -> int:
    """GPUs that `count` bundles take; those with a part of one share it with their own kind."""
    if 0 < each < 1:
        return math.ceil(count / math.floor(1 / each + 1e-9))
    return math.ceil(each * count)


def _fits(pod: PodGroup, node: NodeSize) -> bool:
    return pod.cpus + RAY_CPUS <= node.cpus and pod.gpus <= node.gpus


def _keys(members: list[ResourceRequest]) -> list[str]:
    """The keys that say how large these actors are."""
    keys = []
    for request in members:
        section = "reward" if request.kind == "verifier" else request.kind
        keys += [f"{section}.num_cpus"] + [f"{section}.num_gpus"] * bool(request.gpus)
        keys += ["rollout.tensor_parallel"] * (request.kind == "rollout" and request.gpus > 1)
    return keys
