"""The manifests under deploy/kuberay: they follow the definitions, and let nobody in."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path

import pytest
from manifests import (
    KUBERAY,
    Object,
    build,
    check,
    cluster_of,
    definition,
    is_transition,
    pods,
    rule_errors,
    rules,
)
from manifests import structure_errors as errors_of

OVERLAYS = sorted(path for path in (KUBERAY / "overlays").iterdir())
COMPONENTS = sorted(path for path in (KUBERAY / "components").iterdir())
ONCE = [KUBERAY / "namespace", KUBERAY / "storage" / "shared", KUBERAY / "storage" / "one-node"]
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")


@functools.cache
def _built(folder: Path) -> list[Object]:
    return build(folder)


def built(folder: Path) -> list[Object]:
    return copy.deepcopy(_built(folder))


def ray_object(objects: list[Object]) -> Object:
    (item,) = [item for item in objects if item["apiVersion"] == "ray.io/v1"]
    return item


def with_component(tmp_path: Path, overlay: str, component: str) -> list[Object]:
    # kustomize takes no absolute paths.
    up = "../" * (len(tmp_path.resolve().parts) - 1)
    folders = {"resources": KUBERAY / "overlays" / overlay, "components": KUBERAY / "components" / component}
    lines = [f"{key}: [{up}{str(folder).lstrip('/')}]" for key, folder in folders.items()]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines), encoding="utf-8")
    return build(tmp_path)


# -- definitions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", [KUBERAY / "cluster", KUBERAY / "job", *ONCE, *OVERLAYS], ids=lambda path: path.name
)
def test_manifests_follow_the_definitions(folder: Path) -> None:
    for item in built(folder):
        check(item)


@pytest.mark.parametrize("component", [path.name for path in COMPONENTS])
@pytest.mark.parametrize("overlay", ["quickstart", "interactive"])
def test_overlays_with_a_component_follow_the_definitions(
    tmp_path: Path, overlay: str, component: str
) -> None:
    for item in with_component(tmp_path, overlay, component):
        check(item)


def test_a_field_that_the_api_server_would_drop_is_an_error() -> None:
    job = ray_object(built(KUBERAY / "overlays" / "quickstart"))
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    (error,) = errors_of(job)
    assert "volumeMount" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"managedBy": "me"}, "managedBy field value"),
        ({"deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}}, "requires either BOTH"),
    ],
)
def test_a_broken_rule_is_an_error(changes: Object, message: str) -> None:
    job = ray_object(built(KUBERAY / "overlays" / "quickstart"))
    job["spec"] |= changes
    assert any(message in error for error in rule_errors(job))


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_only_rules_on_changes_are_left_out(kind: str) -> None:
    assert {rule["rule"] for _, rule in rules(definition(kind)) if is_transition(rule)} == {"self == oldSelf"}


# -- who gets in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_pod_is_hardened(overlay: Path) -> None:
    for pod in pods(ray_object(built(overlay))):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert {source for volume in spec["volumes"] for source in volume.keys() - {"name"}} <= {
            "configMap",
            "emptyDir",
            "persistentVolumeClaim",
        }
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["privileged"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_secrets_come_from_secrets_only(overlay: Path) -> None:
    objects = built(overlay)
    assert all(item["kind"] != "Secret" for item in objects)
    for pod in pods(ray_object(objects)):
        for container in pod["spec"]["containers"]:
            plain = [variable["name"] for variable in container.get("env", []) if "value" in variable]
            assert not [name for name in plain if SECRET.search(name)]
            assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))


def test_all_keys_go_to_the_head_alone() -> None:
    job = ray_object(built(KUBERAY / "overlays" / "several-nodes"))
    head, *others, submitter = (pod["spec"]["containers"][0] for pod in pods(job))
    assert head["envFrom"] == [{"secretRef": {"name": "hpt-ray-keys", "optional": True}}]
    assert len(others) == 2
    for container in (*others, submitter):
        assert "envFrom" not in container
        secret = [variable["name"] for variable in container["env"] if "valueFrom" in variable]
        assert secret == ([] if container is submitter else ["HF_TOKEN"])  # which loads no model


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_rule_names_a_namespace(overlay: Path) -> None:
    """Whoever may make pods anywhere may give them the operator's label."""
    policies = [item["spec"] for item in built(overlay) if item["kind"] == "NetworkPolicy"]
    rules = [rule for policy in policies for rule in policy.get("ingress", ())]
    peers = [peer for rule in rules for peer in rule["from"]]
    assert len(peers) >= 3
    assert {} not in [peer.get("namespaceSelector") for peer in peers]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_ray_asks_for_a_token(overlay: Path) -> None:
    assert cluster_of(built(overlay))["authOptions"] == {"mode": "token"}


def test_the_namespace_denies_what_no_policy_allows() -> None:
    objects = built(KUBERAY / "namespace")
    (namespace,) = [item for item in objects if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "NetworkPolicy"}
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ((rule,),) = [spec["egress"] for spec in policies.values()]
    assert {port["port"] for port in rule["ports"]} == {53}
    accounts = [item for item in objects if item["kind"] == "ServiceAccount"]
    assert [account["automountServiceAccountToken"] for account in accounts] == [False]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_only_its_own_pods_and_two_ports_reach_a_run(overlay: Path) -> None:
    objects = built(overlay)
    mine = {"hpt-ray/run": overlay.name}
    for pod in pods(ray_object(objects)):
        assert mine.items() <= pod["metadata"]["labels"].items()
    policies = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy"]
    assert all(policy["podSelector"]["matchLabels"] == mine for policy in policies)
    among_themselves = [{"podSelector": {"matchLabels": mine}}]
    ports = []
    for rule in (rule for policy in policies for rule in policy.get("ingress", ())):
        assert rule["from"]
        if rule["from"] != among_themselves:
            ports += [port["port"] for port in rule["ports"]]
    assert sorted(ports) == [8080, 8265]


def test_without_the_component_no_run_reaches_the_internet() -> None:
    rules_out = [
        rule
        for item in built(KUBERAY / "overlays" / "quickstart")
        if item["kind"] == "NetworkPolicy"
        for rule in item["spec"].get("egress", ())
    ]
    assert rules_out == [{"to": [{"podSelector": {"matchLabels": {"hpt-ray/run": "quickstart"}}}]}]


# -- storage, stop, queue --------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_what_a_run_writes_has_a_volume(overlay: Path) -> None:
    item = ray_object(built(overlay))
    for group in pods(item)[: -1 if item["kind"] == "RayJob" else None]:
        (container,) = group["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/shared", "/cache", "/tmp", "/dev/shm"} <= mounts.keys()
        volumes = {volume["name"]: volume for volume in group["spec"]["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        for variable in container["env"]:
            if variable.get("value", "").startswith("/"):
                assert any(Path(variable["value"]).is_relative_to(path) for path in mounts)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_a_pod_that_ends_has_time_for_a_save(overlay: Path) -> None:
    item = ray_object(built(overlay))
    for group in pods(item)[: -1 if item["kind"] == "RayJob" else None]:
        (container,) = group["spec"]["containers"]
        assert container["lifecycle"]["preStop"]["exec"]["command"] == [
            "python",
            "-m",
            "hpt_ray.tools.deploy",
            "drain",
        ]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        # Ray must give up before Kubernetes does, or nothing says why.
        assert (
            60 < int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) < group["spec"]["terminationGracePeriodSeconds"]
        )


def test_with_an_object_store_a_run_needs_no_volume(tmp_path: Path) -> None:
    (head, _) = pods(ray_object(with_component(tmp_path, "quickstart", "object-store")))
    assert not [volume for volume in head["spec"]["volumes"] if "persistentVolumeClaim" in volume]


@pytest.mark.parametrize(
    ("component", "label"), [("kueue", "kueue.x-k8s.io/queue-name"), ("volcano", "volcano.sh/queue-name")]
)
@pytest.mark.parametrize("overlay", ["quickstart", "interactive"])
def test_a_queue_is_a_label_on_the_ray_object(
    tmp_path: Path, overlay: str, component: str, label: str
) -> None:
    objects = with_component(tmp_path, overlay, component)
    assert ray_object(objects)["metadata"]["labels"][label] == "hpt-ray"


def test_the_images_ray_is_the_one_that_is_installed() -> None:
    import ray

    for overlay in OVERLAYS:
        assert cluster_of(built(overlay))["rayVersion"] == ray.__version__
