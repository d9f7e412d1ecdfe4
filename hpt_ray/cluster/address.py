"""Which Ray cluster to join: from `cluster.address` to HOST:PORT, before Ray itself is asked.

Once Ray has looked, it has made up its mind about tokens and addresses; where nothing answers it waits for a
minute and ends the process, and where something else listens it waits for longer. So whoever listens is asked
here, within a limit, whether it is the head of a cluster. Whether it lets us in is left to `ray.init`.
"""

from __future__ import annotations

import os

import grpc
import ray

from hpt_ray.errors import UserError

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


def address_to_join(address: str) -> str | None:
    """HOST:PORT of the cluster to join; None to start one here.

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
