"""The timeline of a step: what each actor did, and for whom it waited."""

from pathlib import Path

import pytest

from hpt_ray.observe.trace import Span, TraceWriter, read_step
from hpt_ray.tools.watch.timeline import timeline


def step_spans(step: int, begin: float) -> list[Span]:
    """Four seconds: generation for three, learning from the second to the fourth."""
    return [
        Span("rollout", "driver", begin, begin + 4, step),
        Span("generate", "rollout worker 0", begin, begin + 3),
        Span("generate", "rollout worker 1", begin, begin + 1),
        Span("backward", "learner 0", begin + 2, begin + 4),
    ]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Steps 1 to 3 of five seconds, the second done twice."""
    with TraceWriter(tmp_path / "trace.json") as writer:
        for step, begin in ((1, 100.0), (2, 105.0), (2, 110.0), (3, 115.0)):
            writer.add(step_spans(step, begin))
    return tmp_path / "trace.json"


def test_a_step_lasts_to_the_next_and_of_one_done_twice_the_last_counts(trace: Path) -> None:
    found = timeline(trace, 2)
    assert found["seconds"] == 5
    tracks = {track["actor"]: track for track in found["tracks"]}
    assert tracks["rollout worker 0"]["spans"] == [["generate", 0, 3]]
    assert tracks["driver"]["spans"] == [["rollout", 0, 4]]
    assert {span.start_s for span in read_step(trace, 2)[0]} == {110, 112}


def test_who_waited_for_whom(trace: Path) -> None:
    waits = {track["actor"]: track["waits"] for track in timeline(trace, 2)["tracks"]}
    assert waits == {
        "driver": {},
        "rollout worker 0": {"learner": 1, "nobody": 1},
        "rollout worker 1": {"rollout worker": 2, "learner": 2, "nobody": 1},
        "learner 0": {"rollout worker": 2, "nobody": 1},
    }


def test_the_newest_step_ends_with_its_last_span_and_others_are_not_there(trace: Path) -> None:
    assert timeline(trace, 3)["seconds"] == 4
    for path, step in ((trace, 0), (trace, 4), (trace, 11), (trace.with_name("none.json"), 1)):
        assert timeline(path, step)["tracks"] == []
