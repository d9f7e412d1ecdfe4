"""Rollout dumps and traces: what was written is what is read, also after a kill."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hpt_ray.errors import UserError
from hpt_ray.observe.rollout_dump import (
    ids_of_prompts,
    read_groups,
    read_pairs,
    read_rollouts,
    write_groups,
    write_rollouts,
)
from hpt_ray.observe.trace import Span, TraceWriter, busy_share, read_trace
from hpt_ray.types import (
    Decision,
    Demonstration,
    FinishReason,
    Group,
    Outcome,
    Prompt,
    RewardResult,
    Rollout,
)


def test_a_dump_holds_tokens_logps_result_and_decision(tmp_path: Path) -> None:
    prompt = Prompt("mini/1", np.array([1, 9], np.int32), "What is 6*7?", ["42", 42], "mini")
    ids, logprobs = np.array([5, 6, 2], np.int32), np.array([-0.1, -2.5, -1e-7], np.float32)
    rollouts = [
        Rollout("mini/1", 0, ids, logprobs, FinishReason.STOP, 7, "42"),
        Rollout("mini/1", 1, ids[:0], logprobs[:0], FinishReason.LOST, 7, ""),
    ]
    results = [RewardResult(1.0, Outcome.CORRECT, "42"), RewardResult(0.0, Outcome.ERROR, None, "no rollout")]
    decision = Decision(1.0, 0.0, 1, 2, "solved")
    path = write_rollouts(tmp_path, 12, [(Group(prompt, rollouts, results), decision)], [[0.5, None]])
    assert [file.name for file in tmp_path.iterdir()] == ["step-000012.parquet"]
    first, second = read_rollouts(path)
    assert np.array_equal(np.array(first["token_ids"], np.int32), ids)
    assert np.array_equal(np.array(first["logprobs"], np.float32), logprobs)
    assert json.loads(first["reference"]) == ["42", 42]
    expected = {
        "step": 12, "group": 0, "prompt_id": "mini/1", "data_source": "mini", "prompt": "What is 6*7?", "sample": 0,
        "text": "42", "finish": "stop", "weight_version": 7, "score": 1.0, "outcome": "correct",
        "extracted": "42", "detail": None, "branch": "rollouts", "reason": "solved", "num_correct": 1,
        "num_rollouts": 2, "rollout_weight": 1.0, "demo_weight": 0.0, "request_id": "mini/1",
    }  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    assert (second["token_ids"], second["finish"], second["outcome"]) == ([], "lost", "error")
    assert (first["advantage"], second["advantage"]) == (0.5, None)
    assert json.loads(first["prompt_row"]) == {
        "prompt": "What is 6*7?",
        "ground_truth": ["42", 42],
        "extra": {},
        "opening": "",
    }


def prompt(number: int) -> Prompt:
    demonstration = Demonstration(np.array([7, 2], np.int32), "42")
    return Prompt(f"mini/{number}", np.array([1, number], np.int32), "6*7?", "42", "mini", demonstration)


def group_of(asked: Prompt, num_rollouts: int, *, seed: int, suffix: str = "") -> Group:
    """Rollouts of every kind: finished, cut, aborted without a token, lost."""
    random = np.random.default_rng(seed)
    rollouts, results = [], []
    for sample in range(num_rollouts):
        finish = list(FinishReason)[sample % 4]
        length = 0 if finish in (FinishReason.ABORT, FinishReason.LOST) else int(random.integers(1, 9))
        ids, logprobs = random.integers(0, 2**31, length), random.standard_normal(length)
        rollouts.append(
            Rollout(
                prompt_id=asked.id + suffix,
                sample=sample,
                token_ids=ids.astype(np.int32),
                logprobs=logprobs.astype(np.float32),
                finish=finish,
                weight_version=-1 if finish is FinishReason.ABORT else seed,
                text=f"größer “{sample}” \x00",
            )
        )
        outcome = list(Outcome)[sample % len(Outcome)]
        extracted = None if outcome is Outcome.NO_ANSWER else "42"
        results.append(
            RewardResult(float(random.standard_normal()), outcome, extracted, "why" if sample else None)
        )
    return Group(asked, rollouts, results)


DATA = {f"mini/{number}": prompt(number) for number in (1, 2, 3, 4)}


def groups_of_a_step() -> list[Group]:
    """The order is that of arrival; one prompt is there twice, one has no rollouts."""
    return [
        group_of(DATA["mini/3"], 8, seed=1),
        group_of(DATA["mini/1"], 8, seed=2),
        group_of(DATA["mini/2"], 0, seed=3),
        group_of(DATA["mini/1"], 8, seed=4, suffix="#2"),
        group_of(DATA["mini/2"], 1, seed=5),
    ]


def plain(group: Group) -> tuple:
    """Everything in a group, down to the bits of its arrays."""
    rollouts = [
        {
            field: (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else value
            for field in Rollout.__slots__
            for value in [getattr(rollout, field)]
        }
        for rollout in group.rollouts
    ]
    return id(group.prompt), rollouts, group.results


def test_groups_come_back_as_they_were(tmp_path: Path) -> None:
    groups = groups_of_a_step()
    path = write_groups(tmp_path / "pending.parquet", groups)
    assert [plain(group) for group in read_groups(path, DATA)] == [plain(group) for group in groups]
    assert [file.name for file in tmp_path.iterdir()] == ["pending.parquet"]
    assert read_groups(write_groups(tmp_path / "none.parquet", []), DATA) == []


def test_a_step_comes_back_with_its_decisions_in_the_order_of_training(tmp_path: Path) -> None:
    groups = groups_of_a_step()
    decisions = [
        Decision(1.0, 0.0, 2, 8, "solved"),
        Decision(0.1 + 0.2, 1 / 3, 2, 8, "weighed"),
        Decision(0.0, 1.0, 0, 0, "demonstrations_always"),
        Decision(0.0, 0.0, 0, 8, "no_demonstration"),
        Decision(0.0, 1.0, 0, 1, "unsolved"),
    ]
    pairs = read_pairs(write_rollouts(tmp_path, 7, list(zip(groups, decisions, strict=True))), DATA)
    assert [decision for _, decision in pairs] == decisions
    assert [plain(group) for group, _ in pairs] == [plain(group) for group in groups]


def test_a_prompt_without_rollouts_has_a_line_of_its_own(tmp_path: Path) -> None:
    decision = Decision(0.0, 1.0, 0, 0, "demonstrations_always")
    path = write_rollouts(tmp_path, 1, [(Group(prompt(i), [], []), decision) for i in (4, 2)])
    lines = read_rollouts(path)
    assert [(line["group"], line["prompt_id"], line["sample"]) for line in lines] == [
        (0, "mini/4", None),
        (1, "mini/2", None),
    ]
    assert {line["branch"] for line in lines} == {"demonstration"}
    assert ids_of_prompts(path) == {"mini/2", "mini/4"}
    assert read_rollouts(write_rollouts(tmp_path, 2, [])) == []


def test_a_dump_that_cannot_be_made_into_groups_says_why(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "pending.parquet", [group_of(prompt(3), 2, seed=1)])
    with pytest.raises(UserError, match=r"pending\.parquet: prompt mini/3 is not in the data"):
        read_groups(path, {"mini/1": prompt(1)})
    pq.write_table(pq.read_table(path).drop_columns(["group", "demo_weight"]), path)
    with pytest.raises(UserError, match=r"older version of hpt_ray: it lacks demo_weight, group, so"):
        read_pairs(path, DATA)


def test_a_step_of_the_papers_size_is_written_in_moments(tmp_path: Path) -> None:
    """128 prompts × 8 rollouts × 8,192 tokens. Value by value it would take a minute."""
    ids, logprobs = np.arange(8192, dtype=np.int32), np.linspace(-1, 0, 8192, dtype=np.float32)
    result = RewardResult(1.0, Outcome.CORRECT, "42")
    groups = [
        Group(
            prompt(i),
            [Rollout(f"mini/{i}", s, ids, logprobs, FinishReason.STOP, 1, "x" * 20_000) for s in range(8)],
            [result] * 8,
        )
        for i in range(128)
    ]
    begin = time.perf_counter()
    path = write_rollouts(tmp_path, 1, [(group, Decision(1.0, 0.0, 8, 8, "solved")) for group in groups])
    assert time.perf_counter() - begin < 10
    (first, *_) = read_groups(path, {group.prompt.id: group.prompt for group in groups})
    assert plain(first) == plain(groups[0])


def test_a_trace_reads_back_and_is_valid_json_after_each_write(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    spans = [Span("rollout", "worker 0", 1e9, 1e9 + 2.5), Span("learn", "rank 0", 1e9 + 1, 1e9 + 2)]
    trace = TraceWriter(path)
    assert isinstance(json.loads(path.read_text()), list)
    for span in spans:
        trace.add([span])
        assert isinstance(json.loads(path.read_text()), list)
    assert read_trace(path) == spans
    trace = TraceWriter(path)  # a resumed run goes on, on the same tracks
    trace.add([Span("sync", "worker 0", 1e9 + 3, 1e9 + 4)])
    trace.add([])
    assert [span.name for span in read_trace(path)] == ["rollout", "learn", "sync"]
    events = json.loads(path.read_text())
    assert sum(event["name"] == "thread_name" for event in events) == 2


@pytest.mark.parametrize("lost_bytes", [1, 2, 4, 20, 100])
def test_a_torn_trace_keeps_its_whole_events(tmp_path: Path, lost_bytes: int) -> None:
    path = tmp_path / "trace.json"
    trace = TraceWriter(path)
    trace.add([Span(f"span {i}", "actor", i, i + 1) for i in range(5)])
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    kept = read_trace(path)
    assert kept == [Span(f"span {i}", "actor", i, i + 1) for i in range(len(kept))]
    assert len(kept) >= 3
    trace = TraceWriter(path)
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
