"""Names of metrics.jsonl as Prometheus has them; the Grafana dashboard asks for such names and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray

from hpt_ray.observe.metrics import METRICS
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import start_trackers
from hpt_ray.observe.trackers.prometheus import SERIES, find

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "hpt_ray.json").read_text(encoding="utf-8"))
GRAFANA_LABELS = {"run"}


def test_every_metric_has_a_name_of_its_own_that_prometheus_takes() -> None:
    names = [series.exported for series in SERIES]
    assert len(set(names)) == len(names) == len(METRICS)
    assert all(re.fullmatch(r"ray_hpt_ray_[a-z][a-z0-9_]*", name) for name in names)


def test_ray_takes_every_description() -> None:
    """It encodes them as ASCII; a Σ in one switched the tracker off."""
    for series in SERIES:
        series.description.encode("ascii")


@pytest.mark.parametrize(
    ("name", "exported", "labels"),
    [
        ("reward/mean", "ray_hpt_ray_reward_mean", {}),
        ("eval/math/mean", "ray_hpt_ray_eval_mean", {"set": "math"}),
        ("eval/math/pass@1/mean", "ray_hpt_ray_eval_mean", {"set": "math/pass@1"}),
        ("rollout/finish/length", "ray_hpt_ray_rollout_finish_total", {"reason": "length"}),
        ("rollout/off_policy_steps/2", "ray_hpt_ray_rollout_off_policy_steps_total", {"versions": "2"}),
        ("rollout/off_policy_steps_mean", "ray_hpt_ray_rollout_off_policy_steps_mean", {}),
        ("faults/rollout_failed", "ray_hpt_ray_faults_total", {"kind": "rollout_failed"}),
    ],
)
def test_names_of_the_metrics_file(name: str, exported: str, labels: dict[str, str]) -> None:
    series, found = find(name)
    assert (series.exported, found) == (exported, labels)


def test_a_name_that_is_in_no_list_is_an_error() -> None:
    with pytest.raises(KeyError, match="reward/maen"):
        find("reward/maen")


def test_without_a_cluster_the_endpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    ray.shutdown()  # the cluster of a test before this one
    trackers = start_trackers(["prometheus"], RunFolder.create(tmp_path, "demo"), {})
    trackers.log(1, {"reward/mean": 0.5})
    trackers.close()
    assert trackers.failures == {"prometheus": "RuntimeError: no node of the Ray cluster exports metrics"}


def queries(node: Any) -> list[str]:
    """Every query in the dashboard."""
    if isinstance(node, list):
        return [query for item in node for query in queries(item)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("expr", "query") if isinstance(node.get(key), str)]
    return own + [query for value in node.values() for query in queries(value)]


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    known = {series.exported: series for series in SERIES}
    asked = [query for query in queries(DASHBOARD) if "ray_" in query]
    assert len(asked) > 20
    for query in asked:
        (name,) = re.findall(r"ray_\w+", query)
        assert name in known, query
        labels = {known[name].label, *GRAFANA_LABELS}
        used = re.findall(r"\{(\w+)=~", query) + re.findall(r"by \(([^)]*)\)", query)
        assert {label for group in used for label in group.split(", ")} <= labels, query
        assert ("increase(" in query) == known[name].is_counter, query


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
