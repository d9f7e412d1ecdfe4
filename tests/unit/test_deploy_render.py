"""`hpt_ray.tools.deploy`: the pods are those that the run asks for, at every size of node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import KUBERAY, ROOT, Object, build, check, cluster_of, groups

from hpt_ray.cluster.runtime import ResourceRequest, lay_out
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import Config
from hpt_ray.driver.actors import resource_requests
from hpt_ray.driver.setup import roles_of
from hpt_ray.errors import UserError
from hpt_ray.tools.deploy.__main__ import main
from hpt_ray.tools.deploy.drain import actors, drain
from hpt_ray.tools.deploy.pod_fields import read_fields
from hpt_ray.tools.deploy.pods import HEAD, NodeSize, Pods, plan_pods
from hpt_ray.tools.deploy.render import Target, differences, image_parts, object_name, on_the_volume, render

CONFIGS = ROOT / "configs"
PAPER = sorted((CONFIGS / "paper").glob("*_as_*.yaml"))
# Each run is one file, or a recipe of the paper and a second file for another method or other nodes.
RUNS = [
    *(
        (path,)
        for path in [*sorted(CONFIGS.glob("*.yaml")), *sorted((CONFIGS / "algorithm").glob("*.yaml")), *PAPER]
    ),
    *((PAPER[0], path) for path in sorted((CONFIGS / "paper" / "method").glob("*.yaml"))),
    *product(PAPER, sorted((CONFIGS / "paper" / "placement").glob("*.yaml"))),
]
OPEN = {
    "gsm8k_tiny.yaml": ["model.path=/shared/tiny", "data.train=[a.parquet]", "evaluation.sets={a: b.parquet}"]
}
OVERLAYS = sorted((KUBERAY / "overlays").iterdir())
GPU_RUN = [
    "model.path=Qwen/Qwen2.5-Math-1.5B",
    "data.train=[a.parquet]",
    "model.dtype=bfloat16",
    "rollout.num_gpus=1",
    "learner.num_gpus=1",
]


@cache
def load(run: tuple[Path, ...]) -> Config:
    return load_config(run, OPEN.get(run[0].name, []))


def name_of(run: tuple[Path, ...]) -> str:
    return "+".join(path.stem for path in run)


@cache
def gpu_run(*words: str) -> Config:
    return load_config(None, [*GPU_RUN, *words])


def asked(config: Config) -> list[ResourceRequest]:
    return resource_requests(config, roles_of(config))


def place(bundles: list[dict[str, float]], nodes: list[dict[str, float]]) -> None:
    """Put every bundle on a node that has room for it, the largest first."""
    for bundle in sorted(bundles, key=lambda bundle: (-bundle.get("GPU", 0.0), -bundle.get("CPU", 0.0))):
        for node in nodes:
            if all(node.get(resource, 0.0) >= amount - 1e-9 for resource, amount in bundle.items()):
                for resource, amount in bundle.items():
                    node[resource] -= amount
                break
        else:
            raise AssertionError(f"no pod has room for {bundle}: {nodes}")


def ray_nodes(pods: Pods) -> list[dict[str, float]]:
    return [
        {"CPU": float(group.cpus), "GPU": float(group.gpus)} | ({group.pool: 1.0} if group.pool else {})
        for group in pods.groups
        for _ in range(group.replicas)
    ]


def nodes_of_manifest(objects: list[Object]) -> list[dict[str, float]]:
    """What `ray start` offers in each pod, as KubeRay will start it."""
    nodes = []
    for group in groups(cluster_of(objects)):
        start = group["rayStartParams"]
        custom = json.loads(start.get("resources", "'{}'").strip("'"))
        (container,) = group["template"]["spec"]["containers"]
        requests = container["resources"]["requests"]
        assert int(requests["cpu"]) > int(start["num-cpus"])
        assert int(requests.get("nvidia.com/gpu", 0)) == int(start["num-gpus"])
        assert container["resources"]["limits"].get("nvidia.com/gpu") == requests.get("nvidia.com/gpu")
        node = {"CPU": float(start["num-cpus"]), "GPU": float(start["num-gpus"]), **custom}
        nodes += [dict(node) for _ in range(group["replicas"])]
    return nodes


def run_of_manifest(objects: list[Object], folder: Path) -> Config:
    """The configuration that the driver will read."""
    (content,) = [item["data"]["run.yaml"] for item in objects if item["kind"] == "ConfigMap"]
    path = folder / "read-back.yaml"
    path.write_text(content, encoding="utf-8")
    return load_config(path, [])


# -- the manifest of a recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_a_recipe_fits_on_the_pods_of_its_manifest(run: tuple[Path, ...], tmp_path: Path) -> None:
    config = load(run)
    for name, content in render(config, Target(image="hpt-ray:test"), tmp_path).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    objects = build(tmp_path)
    for item in objects:
        if item["apiVersion"] == "ray.io/v1":
            check(item)
    read, nodes = run_of_manifest(objects, tmp_path), nodes_of_manifest(objects)
    assert read.resume == "auto"
    assert [replace(request, pool=None) for request in asked(read)] == [
        replace(request, pool=None) for request in asked(config)
    ]
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(node)
    bundles, _ = lay_out(asked(read))
    for resource in ("CPU", "GPU"):
        assert total[resource] >= sum(bundle.get(resource, 0.0) for bundle in bundles)
    place(bundles, nodes)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlays_are_what_render_writes(overlay: Path) -> None:
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text(encoding="utf-8"))
    (image,) = kustomization["images"]
    target = Target(
        image=f"{image['newName']}:{image['newTag']}",
        kind=kustomization["patches"][0]["target"]["kind"],
        components=tuple(Path(path).name for path in kustomization["components"]),
    )
    files = render(load_config(overlay / "run.yaml", []), target, overlay)
    assert {path.name: path.read_text(encoding="utf-8") for path in overlay.iterdir()} == files


# -- any run, any node -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 40),
    workers=st.integers(1, 20),
    tensor_parallel=st.sampled_from([1, 2, 4]),
    cpus=st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    verifier_cpus=st.sampled_from([0.0, 2.0]),
    algorithm=st.sampled_from(["{name: hpt, kl_coef: 0.1}", "{name: ppo}", "{name: sft}"]),
    pools=st.sampled_from(["{}", "{rollout: a, learner: a}", "{reference: rollout}", "{verifier: learner}"]),
    node=st.builds(NodeSize, cpus=st.sampled_from([33, 64, 200]), gpus=st.sampled_from([4, 8])),
)
def test_there_is_always_room_for_the_run(
    ranks, workers, tensor_parallel, cpus, verifier_cpus, algorithm, pools, node
) -> None:
    run = gpu_run(
        f"algorithm={algorithm}",
        f"learner.num_ranks={ranks}",
        f"learner.num_cpus={cpus}",
        f"rollout.num_workers={workers}",
        f"rollout.num_cpus={cpus}",
        f"rollout.tensor_parallel={tensor_parallel}",
        f"rollout.num_gpus={tensor_parallel}",
        f"reward.num_cpus={verifier_cpus}",
        f"cluster.pools={pools}",
    )
    try:
        pods = plan_pods(run, node)
    except UserError as error:
        assert "too small for one" in str(error)  # noqa: PT017
        return
    assert all(group.cpus < node.cpus and group.gpus <= node.gpus for group in pods.groups)
    bundles, _ = lay_out(asked(pods.config))
    by_pool: dict[str | None, list[dict[str, float]]] = {}
    for bundle in bundles:
        pool = next((key for key in bundle if key not in ("CPU", "GPU")), None)
        by_pool.setdefault(pool, []).append(bundle)
    for group in pods.groups:
        # As many of each kind in a pod as `actors` says: that is a way to place them all.
        members = [request for request in asked(pods.config) if request.pool == group.pool]
        assert all(group.replicas * group.actors[request.kind] >= request.count for request in members)
        assert group.cpus >= sum(group.actors[request.kind] * request.cpus for request in members) - 1e-9
        assert group.gpus >= sum(group.actors[request.kind] * request.gpus for request in members) - 1e-9
        if len({request.kind for request in members}) == 1:
            capacity = {"CPU": float(group.cpus), "GPU": float(group.gpus)} | (
                {group.pool: 1.0} if group.pool else {}
            )
            place(by_pool.get(group.pool, []), [dict(capacity) for _ in range(group.replicas)])


def test_a_run_that_fits_on_one_node_is_one_pod() -> None:
    pods = plan_pods(gpu_run("rollout.num_workers=4", "learner.num_ranks=4"), NodeSize(64, 8))
    assert (pods.head.gpus, pods.head.pool, pods.workers) == (8, None, [])
    assert pods.config.cluster.pools == {}


def test_a_larger_run_has_its_groups_apart() -> None:
    pods = plan_pods(gpu_run("rollout.num_workers=12", "learner.num_ranks=8"), NodeSize(64, 8))
    assert [(group.name, group.replicas, group.gpus) for group in pods.groups] == [
        ("head", 1, 0),
        ("learner", 1, 8),
        ("rollout", 2, 6),
    ]
    assert pods.config.cluster.pools == {"learner": "learner", "rollout": "rollout", "verifier": HEAD}


def test_groups_on_the_same_gpus_share_their_pods() -> None:
    words = ["cluster.colocate=true", "rollout.num_workers=16", "learner.num_ranks=16", "learner.num_cpus=2"]
    pods = plan_pods(gpu_run(*words), NodeSize(64, 8))
    (group,) = pods.workers
    assert (group.replicas, group.gpus, group.cpus) == (2, 8, 24)
    assert group.actors == {"learner": 8, "rollout": 8}
    place(lay_out(asked(pods.config))[0], ray_nodes(pods))


def test_pools_of_the_configuration_are_kept() -> None:
    words = ["cluster.pools={rollout: fast, learner: fast}", "rollout.num_workers=4", "learner.num_ranks=4"]
    pods = plan_pods(gpu_run(*words), NodeSize(64, 8))
    assert [(group.name, group.actors) for group in pods.workers] == [("fast", {"learner": 4, "rollout": 4})]


def test_an_actor_larger_than_a_node_is_refused_by_name() -> None:
    run = gpu_run("rollout.tensor_parallel=16", "rollout.num_gpus=16")
    with pytest.raises(UserError, match=r"8 GPU is too small for one rollout.*rollout\.tensor_parallel"):
        plan_pods(run, NodeSize(64, 8))


def test_a_run_that_no_gpu_can_hold_is_refused(tmp_path: Path) -> None:
    run = gpu_run("model.path=Qwen/Qwen2.5-Math-7B", "learner.zero_stage=0")
    with pytest.raises(UserError, match="one GPU of `learner` needs about"):
        render(run, Target(image="x"), tmp_path)


# -- small parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_the_differences_are_the_configuration(run: tuple[Path, ...], tmp_path: Path) -> None:
    config = load(run)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(differences(config)), encoding="utf-8")
    assert load_config(tmp_path / "run.yaml", []) == config


def test_relative_paths_are_on_the_volume() -> None:
    config = gpu_run(
        "data.train=[a.parquet, mini:train, /b/c.parquet, 's3://d/e.parquet']", "evaluation.sets={x: f.jsonl}",
        "phases=[{steps: 1, data: {rehearsal: [g.jsonl], rehearsal_per_step: 4}}, {steps: 1}]",
    )  # fmt: skip
    placed = on_the_volume(config)
    assert placed.data.train == ["/shared/a.parquet", "mini:train", "/b/c.parquet", "s3://d/e.parquet"]
    assert placed.phases[0]["data"] == {"rehearsal": ["/shared/g.jsonl"], "rehearsal_per_step": 4}
    assert placed.evaluation.sets == {"x": "/shared/f.jsonl"}
    assert placed.run.dir == "/shared/runs"
    assert placed.resume == "auto"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("hpt-ray", {"newName": "hpt-ray"}),
        ("hpt-ray:gpu", {"newName": "hpt-ray", "newTag": "gpu"}),
        ("registry:5000/a/b", {"newName": "registry:5000/a/b"}),
        ("registry:5000/a/b:1", {"newName": "registry:5000/a/b", "newTag": "1"}),
        ("a/b:1@sha256:0f", {"newName": "a/b", "digest": "sha256:0f"}),
    ],
)
def test_image_names_are_taken_apart(image: str, parts: dict[str, str]) -> None:
    assert image_parts(image) == parts


def test_a_runs_name_becomes_one_of_kubernetes() -> None:
    assert object_name("Qwen_1.5B") == "qwen-1-5b"
    with pytest.raises(UserError, match=r"run\.name"):
        object_name("x" * 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout.num_wrokers=1"], "Did you mean `rollout.num_workers`"),
        (["--with", "kue"], "components are internet, kueue"),
        (["--with", "object-store"], "checkpoint.mirror"),
        (["run.name=../../x"], "`run.name` is '../../x'"),
        (["run.name='a\"b'"], "`run.name` is 'a\"b'"),
        (["run.name=a\nb"], "`run.name` is 'a\\nb'"),
        (["--pods", "no-such.yaml"], "--pods no-such.yaml: cannot be read"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(ROOT / "configs" / "quickstart.yaml")
    assert main(["render", "--config", recipe, "--image", "x", "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


POD_FIELDS = """
serviceAccountName: trainer
imagePullSecrets: [{name: registry}]
nodeSelector: {pool: h100}
tolerations: [{key: reserved, operator: Exists, effect: NoSchedule}]
priorityClassName: research
volumes: [{name: models, persistentVolumeClaim: {claimName: models, readOnly: true}}]
volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
"""


def test_every_pod_gets_what_its_cluster_wants(tmp_path: Path) -> None:
    (tmp_path / "fields.yml").write_text(POD_FIELDS, encoding="utf-8")
    out = tmp_path / "out"
    words = ["--pods", str(tmp_path / "fields.yml"), "--namespace", "team", "--deadline", "86400"]
    recipe = str(ROOT / "deploy" / "kuberay" / "overlays" / "several-nodes" / "run.yaml")
    assert main(["render", "--config", recipe, "--image", "x:1", "--out", str(out), *words]) == 0
    objects = build(out)
    (job,) = [item for item in objects if item["kind"] == "RayJob"]
    check(job)
    assert {item["metadata"]["namespace"] for item in objects} == {"team"}
    assert job["spec"]["activeDeadlineSeconds"] == 86400
    cluster = job["spec"]["rayClusterSpec"]
    specs = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert len(specs) > 2
    for spec in (*specs, job["spec"]["submitterPodTemplate"]["spec"]):
        assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainer", "research")
        assert (spec["imagePullSecrets"], spec["nodeSelector"]) == ([{"name": "registry"}], {"pool": "h100"})
        assert "reserved" in [toleration["key"] for toleration in spec["tolerations"]]
    for spec in specs:
        (container,) = spec["containers"]
        assert spec["volumes"][-1]["name"] == container["volumeMounts"][-1]["name"] == "models"
        assert len(spec["volumes"]) == 6
        for kind in ("requests", "limits"):
            assert container["resources"][kind]["ephemeral-storage"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            assert "nvidia.com/gpu" in [toleration["key"] for toleration in spec["tolerations"]]


@pytest.mark.parametrize("seconds", ["0", "-5", "soon"])
def test_a_deadline_is_a_positive_number(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["render", "--config", "x", "--image", "x", f"--deadline={seconds}"])
    assert "--deadline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("securityContext: {runAsUser: 0}", "found securityContext; a pod's fields are serviceAccountName"),
        ("- 1", "found no fields"),
        ("nodeSelector: [a]", "`nodeSelector` must be a dict"),
    ],
)
def test_what_is_no_field_of_a_pod_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "fields.yml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_fields(tmp_path / "fields.yml")


# -- the end of a pod ------------------------------------------------------------------------------------------


def test_a_worker_pod_is_drained_when_its_actors_are_gone() -> None:
    names = ["ray::LearnerWorker.update", "ray::IDLE", "python"]
    sleepers = [
        subprocess.Popen([name, "-c", "import time; time.sleep(60)"], executable=sys.executable)
        for name in names
    ]
    busy, idle, other = (process.pid for process in sleepers)
    try:
        pids = {process.pid for process in actors()}
        assert busy in pids
        assert not {idle, other} & pids
        assert drain("http://127.0.0.1:1", timeout_s=0.0) is False  # no job server there: a worker
    finally:
        for process in sleepers:
            process.kill()
            process.wait()
    assert busy not in {process.pid for process in actors()}
