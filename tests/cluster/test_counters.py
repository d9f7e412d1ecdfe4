"""What Prometheus reads of a run that does some of its steps again. A real Ray, with its endpoint."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlopen

import pytest
import ray
from nodes import wait_for
from prometheus_client.parser import text_string_to_metric_families

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers.prometheus import PrometheusTracker

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def exported(run: str, name: str) -> float | None:
    (node,) = (node for node in ray.nodes() if node["Alive"])
    with urlopen(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10
    ) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    samples = [sample for family in families for sample in family.samples]
    found = [s.value for s in samples if s.name == f"ray_hpt_ray_{name}" and s.labels["run"] == run]
    return found[0] if found else None


def test_what_is_done_again_is_counted_once(ray_cluster, tmp_path: Path):
    """A counter is the sum over metrics.jsonl; where that went back, it waits."""
    folder = RunFolder.create(tmp_path, "demo")

    def goes_on(first_step: int, *counts: int) -> None:
        folder.cut_after(first_step - 1)
        tracker = PrometheusTracker(folder, {}, first_step)
        for step, count in enumerate(counts, first_step):
            metrics = {"rollout/finish/stop": count}
            folder.append_metrics({"step": step, **metrics})
            tracker.log(step, metrics)

    goes_on(1, 3, 4, 4)
    goes_on(2, 2, 4, 5)
    run = folder.root.name
    wait_for(lambda: exported(run, "step") == 4, 100)
    wait_for(lambda: exported(run, "rollout_finish_total") == 3 + 2 + 4 + 5, 100)
