"""A run as `ray job submit` sends it to a cluster of several nodes, with token authentication.

Three nodes on loopback, as `ray start` makes them: a head that runs no actors, one for the rollout workers, one
for the learner ranks. All tests here use the one cluster.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from command import LIMIT_S, ROOT, TINY, child_environment, run_main
from nodes import HOST, RAY, Nodes, cluster, wait_for
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trace import read_trace
from hpt_ray.observe.trackers.prometheus import find

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]

POOLS = ["rollout", "learner"]
TWO_NODES = [
    *TINY,
    "cluster.address=auto",
    "cluster.pools={rollout: rollout, learner: learner, verifier: rollout}",
    "learner.num_ranks=2",
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head without CPUs for actors, then one node for each of `POOLS`."""
    with cluster(0) as nodes:
        for pool in POOLS:
            nodes.start(2, f"--address={nodes.address}", "--resources", json.dumps({pool: 1}))
        yield nodes


def ray_job(nodes: Nodes, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ray job` with these words, its output and errors as one text."""
    command, *rest = words
    return subprocess.run(
        [RAY, "job", command, "--address", f"http://{HOST}:{nodes.dashboard}", *rest],
        cwd=ROOT,
        env=child_environment(**nodes.environment) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )


def submit(nodes: Nodes, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The line of the README."""
    environment = ["--working-dir", ".", "--runtime-env", "deploy/runtime_env.yaml"]
    return ray_job(nodes, "submit", *environment, *options, "--", "python", "-m", "hpt_ray.main", *words)


def actors_on(node: psutil.Popen) -> set[str]:
    """The kinds of our actors that run on a node."""
    names = set()
    for process in node.children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:  # it ended just now
            continue
        if found := re.match(r"ray::(\w*(?:Worker|Verifier))", title):
            names.add(found[1])
    return names


def exported(nodes: Nodes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What Prometheus would see of ours: name → labels → value, from the targets that Ray names to it."""
    discovery = nodes.folder / "ray" / "prom_metrics_service_discovery.json"
    targets = [target for group in json.loads(discovery.read_text()) for target in group["targets"]]
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for target in dict.fromkeys(targets):
        try:
            with urlopen(f"http://{target}/metrics", timeout=10) as reply:
                text = reply.read().decode()
        except OSError:  # not every part of Ray that is named exports
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_hpt_ray_"):
                    ours = {k: v for k, v in sample.labels.items() if k in ("run", "outcome", "reason")}
                    found.setdefault(sample.name, {})[tuple(sorted(ours.items()))] = sample.value
    return found


def names_of(lines: list[dict[str, object]]) -> set[str]:
    """What Prometheus calls the numbers in lines of metrics.jsonl."""
    names = {name for line in lines for name, value in line.items() if value is not None}
    return {find(name)[0].exported for name in names}


def test_a_job_on_two_nodes_is_seen_stopped_and_resumed(nodes, tmp_path):
    words = [*TWO_NODES, f"run.dir={tmp_path}", "run.name=two"]
    options = ("--no-wait", "--submission-id", "first")
    started = submit(nodes, *words, "run.steps=1000", options=options)
    assert started.returncode == 0, started.stdout

    def steps_done() -> int:
        log = tmp_path / "latest" / "metrics.jsonl"
        return log.read_text().count("\n") if log.is_file() else 0

    printed = nodes.folder / "ray" / "session_latest" / "logs" / "job-driver-first.log"
    wait_for(lambda: steps_done() >= 2 or (printed.is_file() and "failed:" in printed.read_text()), LIMIT_S)
    assert steps_done() >= 2, printed.read_text()
    head, rollout, learner = nodes.processes
    assert actors_on(head) == set()
    assert actors_on(rollout) == {"RolloutWorker", "Verifier"}
    assert actors_on(learner) == {"LearnerWorker"}
    assert "is currently running" in ray_job(nodes, "status", "first").stdout

    folder = RunFolder((tmp_path / "latest").resolve())
    # Ray's agents pass numbers on every few seconds, when they are not busy.
    ours = names_of(folder.read_metrics()[:1])
    wait_for(lambda: ours <= exported(nodes).keys(), LIMIT_S / 2)
    seen = exported(nodes)
    assert seen.keys() <= names_of(folder.read_metrics())
    run = ("run", folder.root.name)
    assert 1 <= seen["ray_hpt_ray_step"][run,] <= steps_done()
    finishes = seen["ray_hpt_ray_rollout_finish_total"]
    assert sum(finishes.values()) >= 32  # 8 prompts × 4 rollouts a step
    assert {dict(labels)["reason"] for labels in finishes} <= {"stop", "length", "abort"}

    stopped = ray_job(nodes, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout
    assert "was stopped" in stopped.stdout
    assert "was stopped" in ray_job(nodes, "status", "first").stdout
    logs = ray_job(nodes, "logs", "first").stdout
    last = re.search(
        r"Stopped after step (\d+) of \d+, which is saved in \S+ To go on: \S*python -m hpt_ray.main .* resume=",
        logs,
    )
    assert last, logs
    step = int(last[1])
    assert step == steps_done()
    wait_for(lambda: not any(map(actors_on, nodes.processes)), 30)

    resumed = submit(nodes, *words, f"run.steps={step + 2}", "resume=auto")
    assert resumed.returncode == 0, resumed.stdout
    assert f"Continuing from step {step} (step-{step:06d})" in resumed.stdout
    assert f"Done: {step + 2} steps" in resumed.stdout
    assert "succeeded" in resumed.stdout
    steps = list(range(1, step + 3))
    assert [line["step"] for line in folder.read_metrics()] == steps
    events = EventAccumulator(str(folder.tensorboard)).Reload().Scalars("reward/mean")
    assert [event.step for event in events] == steps
    actors = {span.actor for span in read_trace(folder.trace)}
    assert {"driver", "rollout-0", "learner-0", "learner-1"} <= actors
    check_upload(nodes.folder)


def check_upload(ray_folder: Path) -> None:
    """What was uploaded is the project: no environment, no history, no earlier runs."""
    packages = list(ray_folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert packages
    for package in packages:
        names = {path.name for path in package.iterdir()}
        assert {"hpt_ray", "configs"} <= names
        assert not {".venv", ".git", "runs"} & names
        assert sum(path.stat().st_size for path in package.rglob("*")) < 10e6


def test_job_with_a_mistake_of_the_user(nodes, tmp_path):
    job = submit(nodes, *TINY, f"run.dir={tmp_path}", "run.step=2")
    assert job.returncode == 1  # Ray's own exit code for any job that failed …
    assert "exit code 2" in job.stdout  # … and ours, as Ray shows it
    assert "error: command line: unknown key `run.step`. Did you mean `run.steps`?" in job.stdout
    assert "Traceback" not in job.stdout


def test_who_has_no_token_is_refused(nodes, tmp_path):
    other = tmp_path / "token"
    other.write_text("0" * 64)
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN_PATH": str(other)}):
        listed = ray_job(nodes, "list", **environment)
        assert listed.returncode != 0
        assert "AuthenticationError" in listed.stdout
        assert "SUCCEEDED" not in listed.stdout
        words = [*TINY, f"cluster.address={nodes.address}", f"run.dir={tmp_path}"]
        joined = run_main(words, **nodes.environment | environment)
        assert joined.returncode == 2, joined.stderr
        assert "the cluster does not let us in" in joined.stderr


def test_no_room_in_a_cluster_says_what_was_asked_and_what_is_there(nodes, tmp_path):
    words = ["cluster.placement_timeout_s=2", "rollout.num_workers=9"]
    finished = run_main([*TWO_NODES, f"run.dir={tmp_path}", *words], **nodes.environment)
    assert finished.returncode == 2, finished.stderr
    assert "the cluster made no room within 2 s" in finished.stderr
    assert "9 × rollout with 0.5 CPU each" in finished.stderr
    assert "4 of 4 CPU free, 3 node(s)" in finished.stderr
    assert "held by: no other run" in finished.stderr
    assert "Traceback" not in finished.stderr
