"""Trackers: what they store can be read back, and one that fails never holds up or ends a run."""

import importlib.util
import json
import logging
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import QUEUE_LIMIT, TRACKERS, TrackerGroup, start_trackers


class LineTracker:
    """Sends each step as one line to a local port: a tracker small enough to break in every way."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._socket.sendall(json.dumps({"step": step, **metrics}).encode() + b"\n")

    def close(self) -> None:
        self._socket.close()


class SlowTracker:
    """Never gets past its first step until it is told to."""

    def __init__(self, released: threading.Event) -> None:
        self._released = released

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._released.wait(60)

    def close(self) -> None: ...


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that is taken, where nobody listens."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        yield silent.getsockname()[1]


def test_tensorboard_files_hold_the_finite_numbers(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    trackers = start_trackers([], folder, {})
    for step in range(3):
        trackers.log(step, {"step": step, "reward/mean": step / 2, "nothing": None, "bad": float("nan")})
    trackers.close()
    assert trackers.failures == {}
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [
        (0, 0.0),
        (1, 0.5),
        (2, 1.0),
    ]


ROWS = [
    {"prompt": "2+2?", "response": "```<script>alert(1)</script> \x1b[2J", "reward": 1.0, "advantage": None},
    {"prompt": "2+2?", "response": "5", "reward": 0.0, "advantage": -0.5},
]


def report_of(folder: RunFolder) -> Path:
    return folder.root / "index.html"


def log_more(trackers: TrackerGroup, folder: RunFolder) -> None:
    trackers.log(1, {"reward/mean": 0.5})
    trackers.log_table(1, "samples", ROWS)
    trackers.log_values(1, {"rollout/length": [3.0, 4.0, 4.0], "reward/score": []})
    trackers.log_table(2, "samples", [])
    trackers.log_table(2, "eval/math", ROWS[:1])
    page = report_of(folder)
    page.write_text("the report")
    trackers.log_file(page)
    trackers.close()
    assert trackers.failures == {}


def test_tensorboard_shows_samples_as_code_and_draws_histograms(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    log_more(start_trackers([], folder, {"run": {"seed": 3, "dir": None}}), folder)
    assert sorted(tmp_path.rglob("*tfevents*")) == sorted(
        folder.tensorboard.glob("*")
    )  # nothing below `latest`
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(start).session_start_info.hparams
    assert (found["run.seed"].number_value, found["run.dir"].string_value) == (3, "None")
    assert events.Tags()["histograms"] == ["rollout/length"]
    (histogram,) = events.Histograms("rollout/length")
    assert (histogram.step, histogram.histogram_value.num) == (1, 3)
    assert "eval/math/0/text_summary" in events.Tags()["tensors"]
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")]
    texts = [events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in sorted(tags)]
    assert len(texts) == 2
    assert all(line.startswith("    ") for text in texts for line in text.splitlines())
    assert "response: ```<script>alert(1)</script> ␛[2J" in texts[0]
    assert "advantage" not in texts[0]


def test_a_tracker_of_numbers_alone_gets_numbers_alone(tmp_path: Path) -> None:
    class Numbers:
        def __init__(self) -> None:
            self.lines: list[tuple[int, Mapping[str, float]]] = []

        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            self.lines.append((step, metrics))

        def close(self) -> None: ...

    tracker = Numbers()
    log_more(TrackerGroup({"numbers": lambda: tracker}), RunFolder(tmp_path))
    assert tracker.lines == [(1, {"reward/mean": 0.5})]


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    for first_step, value in ((0, 1.0), (2, 2.0)):
        trackers = start_trackers(["tensorboard"], folder, {}, first_step=first_step)
        for step in range(first_step, 4):
            trackers.log(step, {"x": value})
        trackers.close()
        time.sleep(1.1)  # event files are named, and read, by the second
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(0, 1), (1, 1), (2, 2), (3, 2)]


def test_an_unreachable_tracker_is_switched_off_with_one_warning(
    dead_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trackers = TrackerGroup({"line": lambda: LineTracker(dead_port)})
        for step in range(3):
            trackers.log(step, {"x": 1.0})
        trackers.close(timeout_s=10)
    assert list(trackers.failures) == ["line"]
    assert "ConnectionRefusedError" in trackers.failures["line"]
    assert len([record for record in caplog.records if "switched off" in record.message]) == 1


def test_a_failing_tracker_leaves_the_others_alone(dead_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        trackers = TrackerGroup({"dead": lambda: LineTracker(dead_port), "live": lambda: LineTracker(port)})
        connection, _ = server.accept()
        for step in range(3):
            trackers.log(step, {"x": 0.5})
        trackers.close(timeout_s=10)
        connection.settimeout(5)
        with connection, connection.makefile() as lines:
            assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert list(trackers.failures) == ["dead"]


def test_a_slow_tracker_never_holds_up_a_step() -> None:
    released = threading.Event()
    trackers = TrackerGroup({"slow": lambda: SlowTracker(released)})
    started = time.monotonic()
    for step in range(QUEUE_LIMIT + 100):
        trackers.log(step, {"x": 1.0})
    assert time.monotonic() - started < 5
    assert "does not keep up" in trackers.failures["slow"]
    trackers.close(timeout_s=1)
    released.set()


def test_closing_waits_no_longer_than_its_limit() -> None:
    released = threading.Event()
    trackers = TrackerGroup({"slow": lambda: SlowTracker(released)})
    trackers.log(0, {"x": 1.0})
    started = time.monotonic()
    trackers.close(timeout_s=0.2)
    assert time.monotonic() - started < 5
    assert trackers.failures == {"slow": "it did not finish within 0.2 s"}
    released.set()


def test_unknown_and_missing_trackers_are_the_users_to_fix(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "demo")
    with pytest.raises(
        UserError,
        match=r"wanbd: no such name\. Did you mean wandb\? There are: mlflow, prometheus, tensorboard",
    ):
        start_trackers(["wanbd"], folder, {})
    for name, kind in TRACKERS.items():
        assert kind.package is not None
        if importlib.util.find_spec(kind.package) is None:
            with pytest.raises(
                UserError, match=rf"names {name}, and {kind.package} is not installed.*hpt_ray\[trackers\]"
            ):
                start_trackers([name], folder, {})


def test_a_tracker_that_is_not_named_is_not_imported() -> None:
    code = (
        "import sys; import hpt_ray.observe.trackers; "
        "assert not {'torch', 'tensorboard', 'ray', 'wandb', 'mlflow', 'trackio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def run_twice(name: str, tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "runs", "demo")
    for first_step in (0, 2):
        trackers = start_trackers([name], folder, {"run": {"steps": 4}}, first_step=first_step)
        for step in (first_step, first_step + 1):
            trackers.log(step, {"step": step, "reward/mean": step / 2})
        trackers.close()
        assert trackers.failures == {}
    return folder


def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `trackers` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder.create(tmp_path / "runs", "demo")
    for first_step in (0, 1):  # from the second step on once more
        trackers = start_trackers(["wandb"], folder, {}, first_step=first_step)
        for step in range(first_step, 3):
            trackers.log(step, {"reward/mean": step / 2})
        trackers.log(1, {"eval/mean": 1.0})  # later than step 2
        trackers.close()
        assert trackers.failures == {}
    files = sorted(
        (folder.logs / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime
    )
    assert [[(line["step"], line.get("reward/mean")) for line in wandb_lines(file)] for file in files] == [
        [(0, 0.0), (1, 0.5), (2, 1.0), (1, None)],
        [(1, 0.5), (2, 1.0), (1, None)],
    ]


def test_wandb_takes_samples_and_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `trackers` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder.create(tmp_path / "runs", "demo")
    log_more(start_trackers(["wandb"], folder, {}), folder)
    (file,) = (folder.logs / "wandb").glob("offline-run-*/*.wandb")
    scalars, samples, values, evaluation = wandb_lines(file)
    assert (evaluation["eval/math/_type"], evaluation["step"]) == ("table-file", 2)
    assert b"report-demo" in file.read_bytes()  # the artifact
    assert scalars["reward/mean"] == 0.5
    assert (samples["samples/_type"], samples["samples/nrows"]) == ("table-file", 2)
    assert (values["rollout/length/_type"], sum(values["rollout/length/values"])) == ("histogram", 3)
    assert [line["step"] for line in (scalars, samples, values)] == [1, 1, 1]
    (table,) = file.parent.rglob("samples*.table.json")
    found = json.loads(table.read_text(encoding="utf-8"))
    assert (found["columns"], found["data"]) == ([*ROWS[0]], [[*row.values()] for row in ROWS])


def wandb_lines(file: Path) -> list[dict[str, Any]]:
    """What an offline run would send: a file of records in blocks of 32 KiB, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, found = file.read_bytes(), 7, []
    while at < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, at)
        assert kind == 1, "a record in more than one block"
        record = Record.FromString(content[at + 7 : at + 7 + length])
        if record.HasField("history"):
            items = record.history.item
            found.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
        at += 7 + length
    return found


def test_mlflow_goes_on_in_the_run_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `trackers` is not installed")
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    folder = run_twice("mlflow", tmp_path)
    with sqlite3.connect(database) as connection:
        assert connection.execute("select name from runs").fetchall() == [(folder.root.name,)]
        assert connection.execute("select key, value from params").fetchall() == [("run.steps", "4")]
        found = connection.execute("select step, value from metrics order by step").fetchall()
    assert found == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]


def test_mlflow_takes_sets_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `trackers` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    config = {"evaluation": {"sets": {"math/pass@1": "a.jsonl", "a//b": "b.jsonl"}}}
    trackers = start_trackers(["mlflow"], RunFolder.create(tmp_path / "runs", "demo"), config)
    trackers.log(1, {"eval/math/pass@1/mean": 0.5, "eval/a//b/mean": 0.25})
    trackers.close()
    assert trackers.failures == {}
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        found = dict(connection.execute("select key, value from metrics").fetchall())
    assert found == {"eval/math/pass_1/mean": 0.5, "eval/a/b/mean": 0.25}


def test_mlflow_takes_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `trackers` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(tmp_path / "runs", "demo")
    log_more(start_trackers(["mlflow"], folder, {}), folder)
    assert [path.read_text() for path in tmp_path.rglob("report/index.html")] == ["the report"]
    assert len([*tmp_path.rglob("eval/math.json")]) == 1
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        found = connection.execute("select value from metrics where key = 'rollout/length/p50'").fetchall()
    assert found == [(4.0,)]
    (table,) = tmp_path.rglob("samples.json")
    found = json.loads(table.read_text(encoding="utf-8"))
    assert found["columns"] == ["step", *ROWS[0]]
    assert found["data"] == [[1, *row.values()] for row in ROWS]


def test_trackio_goes_on_in_the_run_of_the_same_name(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the extra `trackers` is not installed")
    # Trackio reads its folder when it is imported, hence the process of its own.
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from test_observe_trackers import *; folder = run_twice('trackio', Path(sys.argv[2])); "
        "log_more(start_trackers(['trackio'], folder, {}, first_step=4), folder)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "TRACKIO_DIR": str(tmp_path / "trackio"),
            "PYTHONPATH": ":".join(sys.path),
        },
        check=True,
        timeout=60,
    )
    with sqlite3.connect(tmp_path / "trackio" / "hpt_ray.db") as connection:
        found = connection.execute("select step, metrics from metrics order by step").fetchall()
    lines = [(step, json.loads(metrics)) for step, metrics in found]
    means = [(step, line["reward/mean"]) for step, line in lines if "reward/mean" in line]
    assert means == [(0, 0.0), (1, 0.5), (1, 0.5), (2, 1.0), (3, 1.5)]
    (samples,) = (line["samples"] for _, line in lines if "samples" in line)
    assert samples["_type"] == "trackio.table"
    assert [step for step, line in lines if "eval/math" in line] == [2]
    assert "the report" in [
        path.read_text() for path in (tmp_path / "trackio" / "artifacts").rglob("blobs/*/*/*")
    ]
    (lengths,) = (line["rollout/length"] for _, line in lines if "rollout/length" in line)
    assert sum(lengths["values"]) == 3
