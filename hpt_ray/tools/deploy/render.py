"""A run's configuration → a kustomize overlay on `deploy/kuberay`.

In: the checked configuration, an image, the size of a node. Out: the files of the overlay by name.

    kustomization.yaml   which base, components, image and name
    run.yaml             the configuration, as far as it differs from the defaults
    pods.yaml            what the head and the groups of workers are, derived from run.yaml
    judges.yaml          the way to the servers of `http:URL` reward functions, where the configuration has such
    fields.yaml          where in Ray's objects kustomize finds labels and the name of the ConfigMap; as in the base

What all pods have in common, such as security and volumes, stands once, in `deploy/kuberay/cluster`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from hpt_ray.config.load import known_keys
from hpt_ray.config.references import written
from hpt_ray.config.schema import Config, DataConfig
from hpt_ray.data import mini
from hpt_ray.errors import UserError
from hpt_ray.tools.deploy.judges import judge_policy
from hpt_ray.tools.deploy.memory import pod_memory_gib, shared_memory_gib
from hpt_ray.tools.deploy.pod_fields import OF_THE_CONTAINER, field_operations
from hpt_ray.tools.deploy.pods import HEAD, RAY_CPUS, NodeSize, PodGroup, Pods, plan_pods, slug

BASES = (Path(__file__).parent / "kuberay").resolve()
KEYS = [{"secretRef": {"name": "hpt-ray-keys", "optional": True}}]
SHARED = "/shared"  # where deploy/kuberay/cluster mounts the volume of data and run folders
HEADER = """\
# Made by `python -m hpt_ray.tools.deploy render`, which writes all files here anew. Change run.yaml and render it again
# with --config run.yaml, or build your own kustomization on this folder.
"""
# KubeRay's limit of 47 for the name of a RayJob, less `hpt-ray-`.
NAME_LENGTH = 39


# A pod's own disk: logs, and the emptyDir at /tmp, which may grow to 32 GiB. Without it one run can fill a node's disk.
DISK = ("8Gi", "40Gi")  # asked for, and at most

OPERATOR = "default"  # the namespace in which KubeRay's own instructions install its operator

# KubeRay's objects: the base of each, and where in it the cluster is.
KINDS = {"RayJob": ("job", "/spec/rayClusterSpec"), "RayCluster": ("cluster", "/spec")}


@dataclass(frozen=True)
class Target:
    """What a manifest is made for."""

    image: str
    kind: str = "RayJob"
    node: NodeSize = NodeSize(cpus=96, gpus=8)
    gpu_resource: str = "nvidia.com/gpu"
    components: tuple[str, ...] = ()  # folders of deploy/kuberay/components
    namespace: str = "hpt-ray"
    operator_namespace: str = OPERATOR
    deadline_s: int | None = None  # of a RayJob
    pod_fields: Mapping[str, Any] = field(default_factory=dict)  # see `pod_fields.py`


def render(config: Config, target: Target, out: Path) -> dict[str, str]:
    """File name → content of the overlay at `out`. Raises `UserError` where the run does not fit on the nodes."""
    known = sorted(folder.name for folder in (BASES / "components").iterdir())
    if unknown := sorted(set(target.components) - set(known)):
        raise UserError(f"--with {', '.join(unknown)}: components are {', '.join(known)}.")
    pods = plan_pods(on_the_volume(config), target.node)
    if "object-store" in target.components and (pods.workers or not config.checkpoint.mirror):
        raise UserError(
            "--with object-store leaves checkpoints in checkpoint.mirror alone: set it, and use it for a run that is "
            f"one pod (this one has {len(pods.workers)} groups of workers, which need a shared volume)."
        )
    internet = bool({"internet", "object-store"} & {*target.components})
    judges = judge_policy(pods, target.namespace, internet=internet)
    name = object_name(config.run.name)
    base, _ = KINDS[target.kind]

    def at(folder: str) -> str:
        return os.path.relpath(BASES / folder, out.resolve())

    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": target.namespace,
        "nameSuffix": f"-{name}",
        "resources": [at(base), *["judges.yaml"] * bool(judges)],
        "components": [at(f"components/{component}") for component in target.components],
        "images": [{"name": "hpt-ray", **image_parts(target.image)}],
        "labels": [{"pairs": {"hpt-ray/run": name}, "includeSelectors": True}],
        "configMapGenerator": [{"name": "run", "files": ["run.yaml"]}],
        "configurations": ["fields.yaml"],
        "patches": [
            {"path": "pods.yaml", "target": {"kind": target.kind}},
            *_operator(target.operator_namespace),
        ],
    }
    return {
        "kustomization.yaml": HEADER + _dump(kustomization),
        "run.yaml": _dump(differences(pods.config)),
        "pods.yaml": _dump(patch(pods, target)),
        **({"judges.yaml": _dump(judges)} if judges else {}),
        "fields.yaml": (BASES / base / "fields.yaml").read_text(encoding="utf-8"),
    }


def _operator(namespace: str) -> list[dict[str, Any]]:
    """The patch that lets the operator of another namespace in."""
    path = "/spec/ingress/0/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name"
    patch = _dump([_put("replace", path, namespace)])
    return [{"target": {"kind": "NetworkPolicy", "name": "hpt-ray-outside"}, "patch": patch}] * (
        namespace != OPERATOR
    )


def on_the_volume(config: Config) -> Config:
    """The configuration with relative paths below the volume, and one that resumes.

    A pod has no working directory that lasts: what is relative here is meant relative to the volume.
    """

    def place(path: str) -> str:
        return path if mini.is_mini(path) or "://" in path else str(Path(SHARED, path))

    def placed(section: dict[str, Any]) -> dict[str, Any]:
        """A `data` section, of a phase or whole."""
        files = {key: section[key] for key in ("train", "rehearsal") if key in section}
        return section | {key: [place(path) for path in paths] for key, paths in files.items()}

    evaluation, data, checkpoint = config.evaluation, config.data, config.checkpoint
    return replace(
        config,
        phases=[
            phase | ({"data": placed(phase["data"])} if "data" in phase else {}) for phase in config.phases
        ],
        resume="auto" if config.resume == "never" else config.resume,
        run=replace(config.run, dir=place(config.run.dir)),
        data=DataConfig(**placed(vars(data))),
        checkpoint=replace(checkpoint, mirror=checkpoint.mirror and place(checkpoint.mirror)),
        evaluation=replace(evaluation, sets={name: place(path) for name, path in evaluation.sets.items()}),
    )


def object_name(run_name: str) -> str:
    """The run's name as Kubernetes takes it: `Qwen_1.5B` → `qwen-1-5b`."""
    name = slug(run_name)
    if not name or len(name) > NAME_LENGTH:
        raise UserError(
            f"run.name={run_name}: as a name for Kubernetes it is `{name}`; use 1 to {NAME_LENGTH} letters, digits "
            "and hyphens."
        )
    return name


def image_parts(image: str) -> dict[str, str]:
    """`host:5000/x:1` as kustomize wants it: `{"newName": "host:5000/x", "newTag": "1"}`."""
    found = re.fullmatch(r"(?P<newName>.+?)(:(?P<newTag>[^/:@]+))?(@(?P<digest>.+))?", image)
    parts = {key: value for key, value in found.groupdict().items() if value} if found else {"newName": image}
    if "digest" in parts:
        parts.pop("newTag", None)
    return parts


def differences(config: Config) -> dict[str, Any]:
    """What of `config` differs from the defaults, as nested keys. Reading it gives the same configuration."""
    found = OmegaConf.create()
    for name, known in known_keys().items():
        value = written(attrgetter(name)(config))
        if value != known.default:
            OmegaConf.update(found, name, value)
    return cast(dict[str, Any], OmegaConf.to_container(found, resolve=False))


def patch(pods: Pods, target: Target) -> list[dict[str, Any]]:
    """The JSON patch (RFC 6902) that makes the base's cluster into these pods."""
    _, root = KINDS[target.kind]
    memory, workers = pod_memory_gib(pods), f"{root}/workerGroupSpecs"
    operations = _pod_operations(f"{root}/headGroupSpec", pods.head, memory, target)
    if target.kind == "RayJob":
        if target.deadline_s is not None:
            operations.append(_put("add", "/spec/activeDeadlineSeconds", target.deadline_s))
        fields = {name: target.pod_fields[name] for name in target.pod_fields if name not in OF_THE_CONTAINER}
        operations += field_operations(fields, "/spec/submitterPodTemplate/spec", {})
    if not pods.workers:
        return [*operations, {"op": "remove", "path": workers}]
    operations += [{"op": "copy", "from": f"{workers}/0", "path": f"{workers}/-"} for _ in pods.workers[1:]]
    for i, group in enumerate(pods.workers):
        path, count = f"{workers}/{i}", group.replicas
        values = {
            "groupName": group.label,
            "replicas": count,
            "minReplicas": count,
            "maxReplicas": count,
        }
        operations += [_put("replace", f"{path}/{key}", value) for key, value in values.items()]
        operations += _pod_operations(path, group, memory, target)
    return operations


def _pod_operations(
    path: str, group: PodGroup, memory_gib: Mapping[str, int], target: Target
) -> list[dict[str, Any]]:
    spec = f"{path}/template/spec"
    memory = {"memory": f"{memory_gib[group.name]}Gi"}
    limits = {**memory, "ephemeral-storage": DISK[1]}
    requests = {"cpu": str(group.cpus + RAY_CPUS), **memory, "ephemeral-storage": DISK[0]}
    start = {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)}
    if group.pool is not None:
        # KubeRay puts this into a shell's command line as it is.
        start["resources"] = f"'{{\"{group.pool}\": 1}}'"
    operations = [_put("add", f"{path}/rayStartParams/{key}", value) for key, value in start.items()]
    own: dict[str, list[Any]] = {}
    if group.gpus:
        requests[target.gpu_resource] = limits[target.gpu_resource] = str(group.gpus)
        toleration = {"key": target.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        own["tolerations"] = [toleration]
    operations += field_operations(target.pod_fields, spec, own)
    if "verifier" in group.actors and group.name != HEAD:
        # Its reward functions may need keys; the head has them.
        operations.append(_put("add", f"{spec}/containers/0/envFrom", KEYS))
    resources = {"requests": requests, "limits": limits}
    return [
        *operations,
        _put("replace", f"{spec}/containers/0/resources", resources),
        _put("replace", f"{spec}/volumes/4/emptyDir/sizeLimit", f"{shared_memory_gib(group)}Gi"),
    ]


def _put(op: str, path: str, value: Any) -> dict[str, Any]:
    return {"op": op, "path": path, "value": value}


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
