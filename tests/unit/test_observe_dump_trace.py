"""Rollout dumps and traces: what was written is what is read, also after a kill."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpt_ray.observe.rollout_dump import read_rollouts, write_rollouts
from hpt_ray.observe.trace import Span, TraceWriter, busy_share, read_trace
from hpt_ray.records import Decision, FinishReason, Group, Outcome, Question, Rollout, Verdict


def test_a_dump_holds_tokens_logps_verdict_and_decision(tmp_path: Path) -> None:
    question = Question("mini/1", np.array([1, 9], np.int32), "What is 6*7?", ["42", 42], "mini")
    ids, logps = np.array([5, 6, 2], np.int32), np.array([-0.1, -2.5, -1e-7], np.float32)
    rollouts = [
        Rollout("mini/1", 0, ids, logps, FinishReason.STOP, 7, "42"),
        Rollout("mini/1", 1, ids[:0], logps[:0], FinishReason.LOST, 7, ""),
    ]
    verdicts = [Verdict(1.0, Outcome.CORRECT, "42"), Verdict(0.0, Outcome.ERROR, None, "no rollout")]
    decision = Decision(1.0, 0.0, 1, 2, "solved")
    path = write_rollouts(tmp_path, 12, [(Group(question, rollouts, verdicts), decision)])
    assert [file.name for file in tmp_path.iterdir()] == ["step-000012.parquet"]
    first, second = read_rollouts(path)
    assert np.array_equal(np.array(first["token_ids"], np.int32), ids)
    assert np.array_equal(np.array(first["logps"], np.float32), logps)
    assert json.loads(first["reference"]) == ["42", 42]
    expected = {
        "step": 12, "question_id": "mini/1", "data_source": "mini", "prompt": "What is 6*7?", "sample": 0,
        "text": "42", "finish": "stop", "weight_version": 7, "score": 1.0, "outcome": "correct",
        "extracted": "42", "detail": None, "branch": "rollouts", "reason": "solved", "num_solved": 1,
    }  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    assert (second["token_ids"], second["finish"], second["outcome"]) == ([], "lost", "error")


def test_a_step_without_rollouts_is_an_empty_table(tmp_path: Path) -> None:
    assert read_rollouts(write_rollouts(tmp_path, 1, [])) == []


def test_a_trace_reads_back_and_is_valid_json_after_each_write(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    spans = [Span("rollout", "worker 0", 1e9, 1e9 + 2.5), Span("learn", "rank 0", 1e9 + 1, 1e9 + 2)]
    with TraceWriter(path) as trace:
        assert isinstance(json.loads(path.read_text()), list)
        for span in spans:
            trace.add([span])
            assert isinstance(json.loads(path.read_text()), list)
    assert read_trace(path) == spans
    with TraceWriter(path) as trace:  # a resumed run goes on, on the same tracks
        trace.add([Span("sync", "worker 0", 1e9 + 3, 1e9 + 4)])
        trace.add([])
    assert [span.name for span in read_trace(path)] == ["rollout", "learn", "sync"]
    events = json.loads(path.read_text())
    assert sum(event["name"] == "thread_name" for event in events) == 2


@pytest.mark.parametrize("lost_bytes", [1, 2, 4, 20, 100])
def test_a_torn_trace_keeps_its_whole_events(tmp_path: Path, lost_bytes: int) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(path) as trace:
        trace.add([Span(f"span {i}", "actor", i, i + 1) for i in range(5)])
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    kept = read_trace(path)
    assert kept == [Span(f"span {i}", "actor", i, i + 1) for i in range(len(kept))]
    assert len(kept) >= 3
    with TraceWriter(path) as trace:
        trace.add([Span("later", "actor", 9, 10)])
    assert isinstance(json.loads(path.read_text()), list)
    assert read_trace(path)[-1] == Span("later", "actor", 9, 10)


def test_a_killed_run_leaves_a_trace_that_opens(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    code = (
        "import sys; from pathlib import Path; from hpt_ray.observe.trace import Span, TraceWriter\n"
        "trace = TraceWriter(Path(sys.argv[1])); i = 0\n"
        "while True: trace.add([Span('work', 'actor', i, i + 1)]); i += 1"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    deadline = time.monotonic() + 30
    while (not path.is_file() or path.stat().st_size < 50_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    events = json.loads(path.read_text())
    assert len(events) > 100
    assert len(read_trace(path)) == len(events) - 2


def test_busy_share_counts_overlaps_once_and_only_inside_the_window() -> None:
    spans = [Span("a", "x", 0, 4), Span("b", "x", 2, 3), Span("c", "x", 6, 7), Span("d", "x", 9, 20)]
    assert busy_share(spans, 0, 10) == pytest.approx(0.6)
    assert busy_share(spans, 3, 7) == pytest.approx(0.5)
    assert busy_share(spans, 4, 6) == 0.0
    assert busy_share(spans, 5, 5) == 0.0
    assert busy_share([], 0, 1) == 0.0
