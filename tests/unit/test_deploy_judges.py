"""Rendered network policies: the operator gets in from its namespace, the verifier alone gets out to its judges."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import ROOT, Object, build, check, cluster_of, groups

from hpt_ray.tools.deploy.__main__ import main


def policies(out: Path, *words: str, recipe: str = "quickstart") -> dict[str, Object]:
    """The network policies of a rendered run, by name."""
    path = str(ROOT / "deploy" / "kuberay" / "overlays" / recipe / "run.yaml")
    assert main(["render", "--config", path, "--image", "x:1", "--out", str(out), *words]) == 0
    objects = build(out)
    for item in objects:
        check(item)
    return {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "NetworkPolicy"}


def test_the_operator_is_let_in_from_its_own_namespace(tmp_path: Path) -> None:
    rules = policies(tmp_path, "--operator-namespace", "kuberay")["hpt-ray-outside-quickstart"]["ingress"]
    (operator,) = rules[0]["from"]
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kuberay"}}
    assert operator["podSelector"]


IN_TEAM = {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}}}]}


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://judge.team.svc.cluster.local:8000/grade", IN_TEAM),
        ("http:http://judge.team:8000", IN_TEAM),
        (
            "http://judge/grade",
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hpt-ray"}}}]},
        ),
        (
            "http://10.1.2.3/grade",
            {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"protocol": "TCP", "port": 80}]},
        ),
    ],
)
def test_the_verifier_alone_reaches_the_judge(url: str, rule: Object, tmp_path: Path) -> None:
    found = policies(tmp_path, f"reward.functions={{a: '{url}'}}")["hpt-ray-judges-quickstart"]
    assert found["egress"] == [rule]
    labels = {"hpt-ray/run": "quickstart", "ray.io/group": "headgroup"}
    assert found["podSelector"] == {"matchLabels": labels}


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000/grade", "math"])
def test_a_judge_in_the_pod_opens_nothing(url: str, tmp_path: Path) -> None:
    assert "hpt-ray-judges-quickstart" not in policies(tmp_path, f"reward.function={url}")


def test_a_judge_outside_of_the_cluster_is_the_internet_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = "reward.function=https://judge.example.com/grade"
    assert "hpt-ray-judges-quickstart" not in policies(tmp_path / "a", public, "--with", "internet")
    recipe = str(ROOT / "configs" / "quickstart.yaml")
    for words in ([public], ["reward.function=https://judge.example.com:8443", "--with", "internet"]):
        assert main(["render", "--config", recipe, "--image", "x", "--out", str(tmp_path / "b"), *words]) == 2
        assert "a network policy knows no names outside of the cluster" in capsys.readouterr().err


def test_keys_and_the_way_to_the_judge_follow_the_verifier(tmp_path: Path) -> None:
    pools = "cluster.pools={verifier: judges, rollout: judges}"
    words = ["--out", str(tmp_path), "reward.function=http://judge.team", pools]
    found = policies(tmp_path, *words, recipe="several-nodes")["hpt-ray-judges-several-nodes"]
    assert found["podSelector"]["matchLabels"]["ray.io/group"] == "judges"
    with_keys = [
        group["groupName"]
        for group in groups(cluster_of(build(tmp_path)))
        if "envFrom" in group["template"]["spec"]["containers"][0]
    ]
    assert with_keys == ["head", "judges"]
