"""The way out to the servers of `http:URL` reward functions, as a NetworkPolicy of the overlay.

In: the configuration and its pods. Out: a policy that lets the verifier's pods, and no others, reach those servers. A
service's ports and its pods' ports may differ and the URL has the service's, so a name in the cluster opens its
namespace; an IP address opens itself and its port.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from hpt_ray.config.references import public
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError
from hpt_ray.reward.functions.table import name_and_argument, takes_headers
from hpt_ray.tools.deploy.pods import Pods

PORTS = {"http": 80, "https": 443}


def judge_policy(pods: Pods, namespace: str, *, internet: bool) -> dict[str, Any] | None:
    """The policy; None where nothing beyond the pod itself and the `internet` component is asked for.

    Raises `UserError` for a host that no policy can name.
    """
    servers = [server for spec in _specs(pods.config) if (server := _server(spec, namespace, internet))]
    if not servers:
        return None
    group = next(group.label for group in pods.groups if "verifier" in group.actors)
    labels = {"hpt-ray/run": "base", "ray.io/group": group}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "hpt-ray-judges"},
        "spec": {"podSelector": {"matchLabels": labels}, "policyTypes": ["Egress"], "egress": servers},
    }


def _specs(config: Config) -> list[str]:
    specs = dict.fromkeys([config.reward.function, *config.reward.functions.values()])
    return [spec for spec in specs if takes_headers(spec)]


def _server(spec: str, namespace: str, internet: bool) -> dict[str, Any] | None:
    """One rule of egress."""
    parts = urlsplit(name_and_argument(spec)[1])
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        _, _, rest = host.partition(".")
        where, _, domain = rest.partition(".")
        if host == "localhost":
            return None
        if domain.split(".")[0] not in ("", "svc"):
            if internet and port == 443:
                return None
            raise UserError(
                f"{public(spec)}: a network policy knows no names outside of the cluster, so nothing lets the run "
                "reach this one. Give its IP address, serve it on port 443 and add --with internet, or run it in the "
                "cluster and write SERVICE.NAMESPACE.svc."
            ) from None
        inside = {"kubernetes.io/metadata.name": where or namespace}
        return {"to": [{"namespaceSelector": {"matchLabels": inside}}]}
    if address.is_loopback:
        return None
    block = {"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}
    return {"to": [block], "ports": [{"protocol": "TCP", "port": port}]}
