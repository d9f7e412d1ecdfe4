"""Start a local Ray or join the running one, and reserve room for the run.

In: the cluster section and what the actor groups ask for. Out: a `Cluster` with a placement group, and for
every actor its bundle in it. A bundle is on one node; which bundles share a node is Ray's choice, as few
nodes as it can. Waiting for room has a limit, and what is said on expiry is what a person asks next: what was
asked, what is there, who holds it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import ray_constants, services
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.private_folder import session_folder
from hpt_ray.config.schema import ClusterConfig
from hpt_ray.errors import UserError, WaitExpired
from hpt_ray.utils import signals
from hpt_ray.utils.plugins import environment

POOL_SHARE = 0.001  # of a pool's resource, for one actor: a node started with 1 of it is never the limit
ANSWER_TIMEOUT_S = 10.0  # for a cluster's head to say that it is one
# Set by Ray in a job's own process. A Ray that is started there takes the job's settings for its own, and fails.
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
IS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # as `ray health-check` did; its request is empty
# What a gRPC status says about who listens; the others are told in gRPC's own words.
NOT_A_HEAD = {
    grpc.StatusCode.UNAUTHENTICATED: None,  # a head that wants a token
    grpc.StatusCode.DEADLINE_EXCEEDED: f"silent for {ANSWER_TIMEOUT_S:.0f} s",
    grpc.StatusCode.UNIMPLEMENTED: "something that is not the head of a Ray cluster listens there",
}


@dataclass(frozen=True)
class ResourceRequest:
    """Room for `count` actors of one kind, each with `cpus` and `gpus`, on nodes that have the resource `pool`.

    With `beside` they stand in the bundles of that kind, as many in each, in order: an actor of that kind is
    then on the same node and can use their GPUs.
    """

    kind: str
    count: int
    cpus: float
    gpus: float
    pool: str | None = None
    beside: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """What pins one actor to its pool."""
        return {self.pool: POOL_SHARE} if self.pool else {}

    @property
    def bundle(self) -> dict[str, float]:
        """What one actor reserves; empty for an actor that runs beside the others."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}


class Cluster:
    """The connection to Ray and the room this run holds in it."""

    def __init__(self, *, started_here: bool, connected_here: bool = True):
        self.started_here, self._connected_here = started_here, connected_here
        self.group: PlacementGroup | None = None
        self._places: dict[str, list[int]] = {}
        self._requests: dict[str, ResourceRequest] = {}

    @classmethod
    def connect(cls, config: ClusterConfig) -> Cluster:
        """Join the cluster that `config.address` names, or start one on this machine."""
        logging.getLogger("ray").setLevel(logging.ERROR)  # its log files have the rest
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if ray.is_initialized():
            return cls(started_here=False, connected_here=False)
        address = address_to_join(config.address)
        if address is None:
            _loopback_only()
            # Of tasks that have ended. Ray's own limit of 100,000 would let its memory grow for thousands of steps.
            os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "5000")
            _start_here(options)
            return cls(started_here=True)
        try:
            with _signals_are_ours():
                ray.init(address=address, **options)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise UserError(
                f"cluster.address={address}: the cluster does not let us in ({error})."
            ) from error
        except RuntimeError as error:
            if "Version mismatch" not in str(error):
                raise
            raise UserError(
                f"cluster.address={address}: {str(error).strip()}\n"
                "Use the same image, or the same lock file, on both sides."
            ) from error
        return cls(started_here=False)

    @property
    def num_cpus(self) -> int:
        """CPU cores of the whole cluster."""
        return int(ray.cluster_resources().get("CPU", 0))

    async def reserve(self, requests: list[ResourceRequest], *, timeout_s: float, name: str) -> None:
        """Hold room for `requests`, all or nothing.

        Raises `UserError` at once where a cluster started here is too small, and after `timeout_s`
        seconds where a joined one (which may be growing) has not made room.
        """
        assert self.group is None, "release the room of the last run first"
        self._requests = {request.kind: request for request in requests}
        bundles, self._places = lay_out(requests)
        if self.started_here and _exceeds(bundles, ray.cluster_resources()):
            raise UserError(_no_room(requests, "this machine has too little room"))
        self.group = placement_group(bundles, strategy="PACK", name=name)
        try:
            await asyncio.wait_for(_ready(self.group), timeout_s)
        except TimeoutError as error:
            message = _no_room(requests, f"the cluster made no room within {timeout_s:.0f} s")
            remove_placement_group(self.group)
            raise UserError(message) from error

    def maker(
        self, kind: str, actor_class: type, arguments: Callable[[int], tuple], **options: Any
    ) -> Callable[[int], Any]:
        """What starts actor i with `arguments(i)` in the bundle that was reserved for it.

        `options` are Ray's, such as `max_concurrency`.
        """
        request = self._requests[kind]
        remote_class: Any = ray.remote(actor_class)
        if plugins := environment():
            options = {"runtime_env": {"env_vars": plugins}, **options}

        def make(i: int) -> Any:
            assert self.group is not None, "reserve room first"
            mine: dict[str, Any] = {
                "num_cpus": request.cpus,
                "num_gpus": request.gpus,
                "resources": request.resources,
                **options,
            }
            if kind in self._places:
                mine["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=self._places[kind][i]
                )
            return remote_class.options(**mine).remote(*arguments(i))

        return make

    def create(self, kind: str, actor_class: type, arguments: list[tuple], **options: Any) -> ActorGroup:
        """Actors of one kind, each in a bundle of its own; see `maker`."""
        make = self.maker(kind, actor_class, arguments.__getitem__, **options)
        count = range(len(arguments))
        return ActorGroup([f"{kind}-{i}" for i in count], [make(i) for i in count], make)

    async def place(self, actors: ActorGroup, *, timeout_s: float) -> None:
        """Wait until every process of actors that were made anew is there.

        Room that is lost with a node is found elsewhere by Ray, where there is any. Raises `UserError` where
        there is none.
        """
        try:
            await actors.call("__ray_ready__", timeout_s=timeout_s, what="find a place again")
        except WaitExpired as error:
            raise UserError(_no_room([*self._requests.values()], f"{error}")) from error

    def release(self) -> None:
        """Give the room back, and with it end every actor in it."""
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None

    def close(self) -> None:
        """Leave the cluster, unless this process was in it before; one that was started here ends."""
        self.release()
        if self._connected_here:
            ray.shutdown()


async def _ready(group: PlacementGroup) -> None:
    while not group.wait(timeout_seconds=0):
        await asyncio.sleep(0.05)


def _loopback_only() -> None:
    """A Ray started here is for this run alone: it listens on loopback, and its token is its own.

    Unless it is told that this machine cannot be part of a cluster, Ray replaces 127.0.0.1 by the address
    of a network card. It read the variable when it was imported; the variable is for its child processes.
    Ray turns its token authentication on by itself for a local cluster, but would leave a token in the
    user's home, which changes how later clusters there behave.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    if "RAY_AUTH_TOKEN_PATH" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="hpt_ray-"))  # only this user may enter
        signals.at_end(lambda: shutil.rmtree(folder, ignore_errors=True))
        (folder / "token").write_text(secrets.token_hex(32), encoding="utf-8")
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")


@contextmanager
def _signals_are_ours() -> Iterator[None]:
    """SIGINT and SIGTERM, to us or to our whole process group, are for `utils.signals` to answer.

    So Ray's own processes get a group of their own: without them nothing could be saved any more. They still end
    with this process, however that ends, since the kernel kills them then. And Ray's handlers for SIGTERM, in Python
    and below it, which end the process, are not for us. Ray has no options for either.
    """
    ours, handler = services.ConsolePopen, ray._private.utils.set_sigterm_handler
    services.ConsolePopen = partial(ours, process_group=0)  # type: ignore[misc, assignment]
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        services.ConsolePopen = ours  # type: ignore[misc]
        ray._private.utils.set_sigterm_handler = handler
        signals.put_back()


def lay_out(requests: list[ResourceRequest]) -> tuple[list[dict[str, float]], dict[str, list[int]]]:
    """The bundles to reserve, and by kind the bundle of each actor. A kind that needs nothing has none."""
    bundles: list[dict[str, float]] = []
    places: dict[str, list[int]] = {}
    hosts = {request.beside for request in requests}
    for request in sorted(requests, key=lambda request: request.beside is not None):
        if request.beside is not None:
            each = request.count // len(places[request.beside])
            places[request.kind] = [places[request.beside][i // each] for i in range(request.count)]
        elif request.bundle or request.kind in hosts:
            places[request.kind] = list(range(len(bundles), len(bundles) + request.count))
            bundles += [{} for _ in range(request.count)]
        for index in places.get(request.kind, ()):
            for resource, amount in request.bundle.items():
                bundles[index][resource] = bundles[index].get(resource, 0.0) + amount
    return bundles, places


def _exceeds(bundles: list[dict[str, float]], total: dict[str, float]) -> bool:
    asked: dict[str, float] = {}
    for bundle in bundles:
        for resource, amount in bundle.items():
            asked[resource] = asked.get(resource, 0.0) + amount
    return any(amount > total.get(resource, 0.0) + 1e-6 for resource, amount in asked.items())


def missing_pools(requests: list[ResourceRequest], total: Mapping[str, float]) -> list[str]:
    """A line for every pool that no node of the cluster is in."""
    return [
        f"no node has the resource `{request.pool}` (cluster.pools.{request.kind}): start nodes with "
        f"`ray start --resources '{{\"{request.pool}\": 1}}'`"
        for request in requests
        if request.pool and not total.get(request.pool)
    ]


def _no_room(requests: list[ResourceRequest], headline: str) -> str:
    lines = [f"{headline}.", "asked:"]
    for request in requests:
        gpus = f" and {request.gpus:g} GPU" if request.gpus else ""
        pool = f", on nodes with `{request.pool}`" if request.pool else ""
        beside = f", beside {request.beside}" if request.beside else ""
        lines.append(f"  {request.count} × {request.kind} with {request.cpus:g} CPU{gpus} each{pool}{beside}")
    total, free = ray.cluster_resources(), ray.available_resources()
    there = ", ".join(
        f"{free.get(r, 0):g} of {total.get(r, 0):g} {r} free" for r in ("CPU", "GPU") if total.get(r)
    )
    lines.append(f"there: {there or 'no CPU at all'}, {len(ray.nodes())} node(s)")
    lines += missing_pools(requests, total)
    holders = [
        f"  {entry.get('name') or entry['placement_group_id'][:8]}: {list(entry['bundles'].values())}"
        for entry in placement_group_table().values()
        if entry["state"] == "CREATED"
    ]
    lines += ["held by:", *holders] if holders else ["held by: no other run"]
    lines.append(
        "Lower rollout.num_workers, learner.num_ranks or their num_cpus/num_gpus, wait for the others, "
        "or raise cluster.placement_timeout_s."
    )
    return "\n".join(lines)


def _start_here(options: dict[str, Any]) -> None:
    """Ray's own limit for a node to come up is half a minute, which a busy machine may miss; so twice."""
    for is_last in (False, True):
        try:
            with _signals_are_ours():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    configure_logging=False,
                    _temp_dir=str(session_folder()),
                    **options,
                )
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if is_last:
                raise UserError(
                    "Ray did not come up on this machine within two times 30 s, most likely because it is busy "
                    f"(load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores). Start again when it is less so."
                ) from error


# -- before anything starts ------------------------------------------------------------------------


def room_here(requests: list[ResourceRequest]) -> tuple[dict[str, float], dict[str, float]]:
    """What `requests` reserve in all, and what a Ray that is started on this machine has; without starting it."""
    bundles, _ = lay_out(requests)
    asked = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
    resources = ray._private.resource_and_label_spec.ResourceAndLabelSpec()
    resources.resolve(is_head=True)
    return asked, {"CPU": float(resources.num_cpus or 0), "GPU": float(resources.num_gpus or 0)}


# -- which cluster ---------------------------------------------------------------------------------


def address_to_join(address: str) -> str | None:
    """HOST:PORT of the cluster to join; None to start one here.

    Asked before Ray itself is. Once Ray has looked, it has made up its mind about tokens and addresses; where nothing
    answers it waits for a minute and ends the process, and where something else listens it waits for longer. So
    whoever listens is asked here, within a limit, whether it is the head of a cluster. Whether it lets us in is left
    to `ray.init`.

    Raises `UserError` where a named one is not there, and for a cluster of its own inside a Ray job.
    """
    named = f"cluster.address={address}"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"  # set inside a job
        named = f"RAY_ADDRESS={address}"
    if address == "local":
        if IN_A_JOB in os.environ:
            raise UserError(
                "cluster.address=local: a Ray job runs in the cluster that it was submitted to. Leave "
                "cluster.address at auto, or start the command without `ray job submit`."
            )
        return None
    if address == "auto":
        started = ray._private.utils.read_ray_address()  # by `ray start` on this machine, maybe long gone
        return started if started and why_not(started) is None else None
    problem = why_not(address)
    if problem is not None:
        raise UserError(
            f"{named}: no Ray cluster answers there. Give HOST:PORT as `ray start --head` "
            f"prints it, or set cluster.address=local to run on this machine alone.\nAsked it: {problem}."
        )
    return address


def why_not(address: str) -> str | None:
    """None where the head of a Ray cluster answers at HOST:PORT, else what happened instead."""
    try:
        with _channel(address) as channel:
            channel.unary_unary(IS_ALIVE)(b"", timeout=ANSWER_TIMEOUT_S)
    except grpc.RpcError as error:
        return NOT_A_HEAD.get(error.code(), error.details())
    return None


def _channel(address: str) -> grpc.Channel:
    """As Ray makes its own, without its tokens."""
    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address, options)
    from ray._common.tls_utils import load_certs_from_env

    certificate, key, authority = load_certs_from_env()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate), options)
