"""A small API server of Kubernetes, over HTTP, as kubectl speaks with it: it keeps objects, and KubeRay does nothing.

What is made or changed is checked as the real server would (`manifests.check`). Patches are merged as RFC 7386 says,
which is what kubectl sends for Ray's kinds; of the others it is right where no list changes.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from manifests import Object, check

KINDS = {  # group and version → the kinds it has, by the names of their resources
    "v1": {"configmaps": "ConfigMap"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "ray.io/v1": {"rayjobs": "RayJob"},
}


class KubernetesServer(ThreadingHTTPServer):
    """`objects[kind, name]` is what there is."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], Object] = {}

    def end(self, name: str, state: str) -> None:
        """What KubeRay writes when a RayJob is over."""
        self.objects["RayJob", name]["status"] = {"jobDeploymentStatus": state, "jobStatus": state.upper()}


@contextmanager
def kubernetes(folder: Path) -> Iterator[tuple[KubernetesServer, dict[str, str]]]:
    """A server, and the environment in which kubectl speaks with it."""
    with KubernetesServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        cluster = {"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        config = {"clusters": [cluster], "contexts": [context], "current-context": "test"}
        path = folder / "kubeconfig.yaml"
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **config}), encoding="utf-8")
        try:
            yield server, {"KUBECONFIG": str(path), "HOME": str(folder)}
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: KubernetesServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in ("/api", "/apis"):
            self._reply(200, _versions(path))
        elif (version := path.removeprefix("/apis/").removeprefix("/api/")) in KINDS:
            self._reply(200, _resources(version))
        elif path == "/openapi/v3":
            self._reply(
                200,
                {
                    "paths": {
                        _root(version)[1:]: {"serverRelativeURL": f"/openapi/v3{_root(version)}"}
                        for version in KINDS
                    }
                },
            )
        elif path.startswith("/openapi/v3/"):
            self._reply(200, _openapi(path.removeprefix("/openapi/v3")))
        else:
            self._found(lambda item: item)

    def do_POST(self) -> None:
        item = self._body()
        key = item["kind"], item["metadata"]["name"]
        if key in self.server.objects:
            return self._status(409, "AlreadyExists", f"{key[0]} {key[1]} already exists")
        item["metadata"] |= {"uid": str(uuid.uuid4()), "resourceVersion": "1"}
        return self._keep(item, 201)

    def do_PATCH(self) -> None:
        change = self._body()
        self._found(lambda item: self._keep(_merged(item, change), 200))

    def do_DELETE(self) -> None:
        self._body()
        self._found(lambda item: self.server.objects.pop((item["kind"], item["metadata"]["name"])))

    def log_message(self, *_: Any) -> None:
        pass

    def _found(self, then: Any) -> None:
        """Answer with what `then` makes of the object of this path; itself where that has answered."""
        resource, name = urlsplit(self.path).path.split("/")[-2:]
        kinds = {plural: kind for kinds in KINDS.values() for plural, kind in kinds.items()}
        item = self.server.objects.get((kinds.get(resource, ""), name))
        if item is None:
            self._status(404, "NotFound", f"{resource} {name} not found")
        elif (answer := then(item)) is not None:
            self._reply(200, answer)

    def _keep(self, item: Object, code: int) -> None:
        try:
            check({key: value for key, value in item.items() if key != "status"})
        except Exception as error:
            return self._status(422, "Invalid", str(error))
        self.server.objects[item["kind"], item["metadata"]["name"]] = item
        return self._reply(code, item)

    def _body(self) -> Object:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")

    def _status(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason}
        self._reply(code, {**status, "message": message, "code": code})

    def _reply(self, code: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _versions(path: str) -> Object:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    groups = []
    for version in KINDS:
        if "/" in version:
            one = {"groupVersion": version, "version": version.split("/")[1]}
            groups.append({"name": version.split("/")[0], "versions": [one], "preferredVersion": one})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(version: str) -> Object:
    verbs = ["create", "delete", "get", "list", "patch"]
    found = [
        {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
        for name, kind in KINDS[version].items()
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": found}


def _openapi(root: str) -> Object:
    """As much as kubectl needs to see that the server itself checks fields."""
    version = root.removeprefix("/apis/").removeprefix("/api/")
    group, _, number = version.rpartition("/")
    paths = {}
    for name, kind in KINDS[version].items():
        known = {"x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind}}
        patch = {**known, "parameters": [{"name": "fieldValidation", "in": "query"}], "responses": {}}
        paths[f"{root}/namespaces/{{namespace}}/{name}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths}


def _merged(item: Any, change: Any) -> Any:
    if not isinstance(change, dict) or not isinstance(item, dict):
        return change
    merged = item | {key: _merged(item.get(key), value) for key, value in change.items() if value is not None}
    return {key: value for key, value in merged.items() if key not in change or change[key] is not None}
