"""The page's server: who may ask, what it answers, and that no other file of the machine is behind it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report_material import make_run
from starlette.testclient import TestClient

from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.watch.__main__ import listen
from hpt_ray.tools.watch.reader import ALL_SETS, Run, Runs, curves, rolling_mean, rounded
from hpt_ray.tools.watch.server import application

TOKEN = "secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", "algorithm.name=hpt")
    make_run(folder, "algorithm.name=grpo", done=False)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(application(Runs([folder]), TOKEN), base_url="http://127.0.0.1:8420") as client:
        yield client


def ids(client: TestClient) -> list[str]:
    return [run["id"] for run in client.get(f"/{TOKEN}/api/runs").json()]


def test_the_runs_below_a_folder(client: TestClient) -> None:
    second, first = sorted(
        client.get(f"/{TOKEN}/api/runs").json(), key=lambda run: run["id"].startswith("first")
    )
    assert first["id"] == f"first/{first['name']}"
    assert (first["algorithm"], first["step"], first["total"], first["done"]) == ("hpt", 6, 6, True)
    assert (second["algorithm"], second["done"]) == ("grpo", False)


@pytest.mark.parametrize(
    "path", ["/", "/api/runs", "/wrong/", "/wrong/api/runs", f"/{TOKEN}x/api/runs", "/main.js"]
)
def test_without_the_token_nothing_is_found(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", ""])
def test_another_host_is_refused(client: TestClient, host: str) -> None:
    assert client.get(f"/{TOKEN}/api/runs", headers={"Host": host}).status_code == 400


def test_a_tunnel_may_have_another_port(client: TestClient) -> None:
    assert client.get(f"/{TOKEN}/api/runs", headers={"Host": "localhost:9999"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(client: TestClient, method: str) -> None:
    assert client.request(method, f"/{TOKEN}/api/runs").status_code == 405


def test_the_page_may_run_its_own_scripts_only(client: TestClient) -> None:
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200
    assert "<script" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert client.get("/nowhere").headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["..%2fserver.py", "%2e%2e/server.py", "..%2f..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd"]
)
def test_no_file_beside_the_page_is_served(client: TestClient, path: str) -> None:
    assert client.get(f"/{TOKEN}/{path}").status_code == 404


@pytest.mark.parametrize("run", ["..", "../..", "/etc", "first", ".", "first/../first", ""])
def test_what_is_not_a_run_is_not_opened(client: TestClient, run: str) -> None:
    answer = client.get(f"/{TOKEN}/api/config", params={"run": run})
    assert answer.status_code == 404


def test_a_wrong_question_is_answered(client: TestClient) -> None:
    first, second = ids(client)
    ask = {"metrics": "reward/mean", "width": 1, "smooth": 1}

    def asked(*spans: list, **other: int) -> int:
        params = {"runs": json.dumps(spans), **ask, **other}
        return client.get(f"/{TOKEN}/api/curves", params=params).status_code

    assert asked([first, 0, 10], [second, 3, 4]) == 200
    assert asked([first, 0, 10], width=0) == 400
    assert asked([first, 0, 10**9]) == 400
    assert asked([first, "x", 10]) == 400
    assert asked([first, 0]) == 400
    assert asked(["../other", 0, 10]) == 404
    assert client.get(f"/{TOKEN}/api/curves", params={**ask, "runs": "[["}).status_code == 400


def test_chosen_runs_are_compared(client: TestClient) -> None:
    other, first = sorted(ids(client), key=lambda run: run.startswith("first"))
    params = {"runs": json.dumps([other, first])}
    methods = client.get(f"/{TOKEN}/api/methods", params=params).json()
    assert methods == [["grpo", [other]], ["hpt", [first]]]
    blocks = client.get(f"/{TOKEN}/api/comparison", params=params).json()
    assert [block["title"] for block in blocks][:2] == ["Methods", "Results"]
    assert client.get(f"/{TOKEN}/api/comparison", params={"runs": '["../x"]'}).status_code == 404


def test_the_mean_over_sets_is_where_all_have_a_value(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    for step, values in enumerate([(0.25, 0.75), (0.5, None), (0.5, 1.0)]):
        folder.append_metrics(
            {"step": step, **dict(zip(("eval/a/mean", "eval/b/mean"), values, strict=True))}
        )
    found = curves(Run(folder.root), ["eval/*/mean"], first=0, width=1, count=3)["curves"]
    assert found[ALL_SETS] == {"mean": [0.5, None, 0.75]}


def test_curves_in_buckets(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    for step in range(1, 11):
        folder.append_metrics(
            {"step": step, "reward/mean": float(step), "eval/x/mean": 0.5 if step == 4 else None}
        )
    run = Run(folder.root)
    exact = curves(run, ["reward/*"], first=0, width=1, count=11)["curves"]
    assert exact == {"reward/mean": {"mean": [None, *map(float, range(1, 11))]}}
    found = curves(run, ["reward/mean", "eval/*/mean"], first=1, width=4, count=3, smooth=2)
    assert found["names"][:2] == ["reward/mean", "eval/x/mean"]
    assert found["curves"]["reward/mean"] == {
        "mean": [2.5, 6.5, 9.5],
        "low": [1.0, 5.0, 9.0],
        "high": [4.0, 8.0, 10.0],
        "smooth": [2.125, 6.0, 9.0],
    }
    assert found["curves"]["eval/x/mean"]["mean"] == [0.5, None, None]


def test_an_outlier_of_a_long_run_is_not_lost(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    for step in range(1, 1001):
        folder.append_metrics({"step": step, "optim/grad_norm": 1e6 if step == 777 else 1.0})
    curve = curves(Run(folder.root), ["optim/grad_norm"], first=0, width=100, count=11)["curves"][
        "optim/grad_norm"
    ]
    assert max(curve["high"]) == 1e6
    assert curve["low"] == [1.0] * 11


@pytest.mark.parametrize("smooth", [1, 3])
def test_what_is_new_is_the_end_of_the_whole(tmp_path: Path, smooth: int) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    for step in range(1, 21):
        folder.append_metrics({"step": step, "reward/mean": step / 7})
    run = Run(folder.root)
    whole = curves(run, ["reward/mean"], first=0, width=4, count=6, smooth=smooth)
    rest = curves(run, ["reward/mean"], first=12, width=4, count=3, smooth=smooth)
    assert rest["curves"]["reward/mean"] == {k: v[3:] for k, v in whole["curves"]["reward/mean"].items()}
    assert rest["begun"] == whole["begun"]
    assert {*curves(run, ["*"], first=0, width=4, count=6, bands=False)["curves"]["reward/mean"]} == {"mean"}
    folder.cut_after(3)
    folder.append_metrics({"step": 4, "reward/mean": 9.0})
    assert curves(run, ["reward/mean"], first=0, width=4, count=2)["begun"] != whole["begun"]


def test_rolling_mean_and_digits() -> None:
    assert rolling_mean(np.array([1.0, 3.0, 5.0]), 2).tolist() == [1.0, 2.0, 4.0]
    assert rounded(np.array([0.0, np.nan, 1 / 3, -123456789.0, 1e-300])) == [
        0.0,
        None,
        0.333333,
        -123457000.0,
        1e-300,
    ]


def test_a_run_that_begins_meanwhile_appears(tmp_path: Path) -> None:
    runs = Runs([tmp_path])
    assert runs.all() == {}
    path = make_run(tmp_path, steps=0, done=False)
    assert list(runs.all()) == [path.name]
    assert runs[path.name].facts()["step"] == 0
    other = make_run(tmp_path / "more", steps=1)
    assert list(runs.all()) == sorted([path.name, f"more/{other.name}"])
    shutil.rmtree(path)
    assert list(runs.all()) == [f"more/{other.name}"]


def test_a_folder_or_port_that_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="no such folder"):
        Runs([Path("/nowhere/at/all")])
    with listen(0) as taken, pytest.raises(UserError, match="Name another: --port"):
        listen(taken.getsockname()[1])
