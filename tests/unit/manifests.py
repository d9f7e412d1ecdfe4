"""What the tests of Kubernetes manifests share: building them, the definitions they must follow, the pods in them.

KubeRay's definitions are read from `../shared/kuberay-crds`. They are followed as the API server does: a field that
the schema does not have is an error here (there it would be dropped), and so is a broken validation rule (CEL).
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
DEFINITIONS = ROOT.parent / "shared" / "kuberay-crds"
KUBERNETES = "1.34"
Object = dict[str, Any]


def build(folder: Path) -> list[Object]:
    """What `kubectl apply -k FOLDER` would send. Needs kubectl, but no cluster."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which has kustomize, is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


# -- definitions -----------------------------------------------------------------------------------------------


@functools.cache
def definition(kind: str) -> Object:
    """The OpenAPI schema of one of KubeRay's kinds, as published."""
    path = DEFINITIONS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's definitions are not at {DEFINITIONS}")
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (version,) = [version for version in content["spec"]["versions"] if version["name"] == "v1"]
    return version["schema"]["openAPIV3Schema"]


@functools.cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = _strict(definition(kind))
    schema["properties"]["metadata"] = {"type": "object"}  # checked by kubernetes_validate as any object's
    return jsonschema.Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    """The JSON schema of an OpenAPI schema, in which fields that the API server would drop are errors."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {
            "type": ["integer", "string"],
            **({"pattern": schema["pattern"]} if "pattern" in schema else {}),
        }
    new = {
        key: value for key, value in schema.items() if not key.startswith("x-kubernetes") and key != "format"
    }
    for key in ("properties",):
        if key in new:
            new[key] = {name: _strict(value) for name, value in new[key].items()}
    for key in ("items", "additionalProperties"):
        if key in new:
            new[key] = _strict(new[key])
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open:
        new["additionalProperties"] = False
    return new


def structure_errors(item: Object) -> list[str]:
    """Where an object does not follow its kind's schema."""
    errors = _validator(item["kind"]).iter_errors(item)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


def rules(schema: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Object]]:
    """Every CEL rule of a schema, with the fields that lead to it; `*` is any element."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, rule
    for name, value in schema.get("properties", {}).items():
        yield from rules(value, (*path, name))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from rules(schema[key], (*path, "*"))


def is_transition(rule: Object) -> bool:
    """A rule on a change; the API server does not ask it when an object is made."""
    return "oldSelf" in rule["rule"]


def rule_errors(item: Object) -> list[str]:
    """The validation rules that a new object breaks."""
    broken = []
    for path, rule in rules(definition(item["kind"])):
        if is_transition(rule):
            continue
        for value in _values(item, path):
            if not _program(rule["rule"]).evaluate({"self": celpy.json_to_cel(value)}):
                broken.append(f"{'.'.join(path)}: {rule['message']}")
    return broken


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _values(content: Any, path: tuple[str, ...]) -> Iterator[Any]:
    if not path:
        yield content
    elif path[0] == "*":
        for value in content.values() if isinstance(content, dict) else content:
            yield from _values(value, path[1:])
    elif path[0] in content:
        yield from _values(content[path[0]], path[1:])


def check(item: Object) -> None:
    """That the API server would take the object: KubeRay's by its definitions, the others by Kubernetes' own."""
    if item["apiVersion"].startswith("ray.io/"):
        assert structure_errors(item) == []
        assert rule_errors(item) == []
        for pod in pods(item):
            whole = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": pod.get("metadata", {}),
                "spec": pod["spec"],
            }
            kubernetes_validate.validate(whole, KUBERNETES, strict=True)
    else:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


# -- what is in them -------------------------------------------------------------------------------------------


def cluster_of(objects: list[Object]) -> Object:
    """The spec of the one Ray cluster."""
    (owner,) = [item for item in objects if item["apiVersion"].startswith("ray.io/")]
    return owner["spec"].get("rayClusterSpec", owner["spec"])


def groups(cluster: Object) -> list[Object]:
    """The head, as a group of one, and the groups of workers."""
    return [
        {"groupName": "head", "replicas": 1} | cluster["headGroupSpec"],
        *cluster.get("workerGroupSpecs", []),
    ]


def pods(item: Object) -> list[Object]:
    """Every pod template of a RayJob or RayCluster."""
    cluster = item["spec"].get("rayClusterSpec", item["spec"])
    submitter = item["spec"].get("submitterPodTemplate")
    return [*(group["template"] for group in groups(cluster)), *([submitter] if submitter else [])]
