"""What a cluster wants of every pod of a run and `render` cannot know: a YAML file with fields of Kubernetes' PodSpec.

serviceAccountName: trainer
imagePullSecrets: [{name: registry}]
nodeSelector: {pool: h100}
tolerations: [{key: reserved, operator: Exists}]
volumes: [{name: models, persistentVolumeClaim: {claimName: models, readOnly: true}}]
volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hpt_ray.errors import UserError

# Field → its type. Those of a run's own security stay as `deploy/kuberay/cluster` has them.
FIELDS: Mapping[str, type] = {
    "serviceAccountName": str,
    "imagePullSecrets": list,
    "nodeSelector": dict,
    "affinity": dict,
    "tolerations": list,
    "priorityClassName": str,
    "volumes": list,
    "volumeMounts": list,  # of the container
}
OF_THE_CONTAINER = ("volumes", "volumeMounts")  # the pod that submits the run has no use for these
Operation = dict[str, Any]


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a file. Raises `UserError` for what is none of `FIELDS`."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--pods {path}: cannot be read: {error}") from error
    if not isinstance(fields, dict) or (unknown := [name for name in fields if name not in FIELDS]):
        found = ", ".join(map(str, unknown)) if isinstance(fields, dict) else "no fields"
        raise UserError(f"--pods {path}: found {found}; a pod's fields are {', '.join(FIELDS)}.")
    if wrong := [name for name, value in fields.items() if not isinstance(value, FIELDS[name])]:
        raise UserError(f"--pods {path}: `{wrong[0]}` must be a {FIELDS[wrong[0]].__name__}.")
    return fields


def field_operations(
    fields: Mapping[str, Any], spec: str, own: Mapping[str, list[Any]]
) -> Iterator[Operation]:
    """JSON patch: `fields` in the pod at the path `spec`, after the pod's `own` entries of those that are lists."""
    for name in {**own, **fields}:
        value = fields.get(name)
        if name in OF_THE_CONTAINER:
            at = f"{spec}/{'containers/0/' * (name == 'volumeMounts')}{name}/-"
            yield from ({"op": "add", "path": at, "value": entry} for entry in value or [])
        else:
            together = [*own[name], *(value or [])] if name in own else value
            yield {"op": "add", "path": f"{spec}/{name}", "value": together}
