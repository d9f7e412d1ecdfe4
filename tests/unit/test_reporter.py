"""What a person sees of a step: its line, its evaluation against the one before, samples; also after a resume."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hpt_ray.algorithms import make_estimator
from hpt_ray.checkpoint.state import RunState
from hpt_ray.config.schema import Config
from hpt_ray.driver.reporter import Reporter
from hpt_ray.driver.step_metrics import Pairs
from hpt_ray.observe.metrics import complete_line
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.rollout_dump import dump_of, read_columns
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trackers import TRACKERS, Row, TrackerKind
from hpt_ray.types import Decision, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout


def pairs() -> Pairs:
    ids = np.array([1, 2], dtype=np.int32)
    prompt = Prompt("mini/1", ids, "What is 6*7?", "42", "mini")
    rollouts = [
        Rollout("mini/1", i, ids, np.zeros(2, np.float32), FinishReason.STOP, 3, f"It is {42 + i}.")
        for i in (0, 1)
    ]
    results = [RewardResult(1.0, Outcome.CORRECT), RewardResult(0.0, Outcome.WRONG)]
    return [(Group(prompt, rollouts, results), Decision(1, 0, 1, 2, "solved"))]


def report(folder: RunFolder, after: int, steps: dict[int, dict[str, Any]]) -> str:
    """What is printed of these steps by a process that goes on after the step `after`."""
    config = Config()
    config.observe.samples_every = 2
    console = Console(width=80, file=io.StringIO())
    with Progress(4, first_step=max(after, 0), console=console) as progress:
        reporter = Reporter(config, folder, progress)
        reporter.go_to(after)
        for step, metrics in steps.items():
            line = complete_line({"reward/mean": 0.5} | metrics)
            reporter.write(step, line, pairs() if step else [], Counter(), make_estimator("dr_grpo"))
        reporter.close()
    return console.file.getvalue()  # type: ignore[attr-defined]


class Kept:
    """A tracker of one's own: keeps what it is given."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], first_step: int):
        self.given: list[tuple[str, Any]] = []
        MADE.append(self)

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def log_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        self.given.append((name, [(row["solved"], row["outcome"]) for row in rows]))

    def log_values(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        self.given.append(("advantages", values.get("reward/advantage")))

    def log_file(self, path: Path) -> None:
        self.given.append(("file", path))

    def close(self) -> None: ...


MADE: list[Kept] = []


def test_a_fault_is_in_the_lines_once_also_where_its_line_is_taken_back(tmp_path: Path) -> None:
    folder, estimator = RunFolder(tmp_path), make_estimator("dr_grpo")
    reporter = Reporter(Config(), folder, Progress(4, console=Console(file=io.StringIO())))
    faults: Counter[str] = Counter()
    reporter.go_to(-1)
    for step, fault in ((1, "rollout_failed"), (2, "checkpoint_failed"), (2, "learner_restarted"), (3, None)):
        if fault == "learner_restarted":  # from the checkpoint of the first step
            reporter.go_to(1)
        faults.update([fault] if fault else [])
        reporter.write(step, complete_line({}), [], faults, estimator)
    reporter.close()
    found = [{k for k in line if k.startswith("faults/")} for line in folder.read_metrics()]
    assert found == [
        {"faults/rollout_failed"},
        {"faults/checkpoint_failed", "faults/learner_restarted"},
        set(),
    ]


def test_trackers_get_evaluations_advantages_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "kept", TrackerKind(Kept, "keeps what it is given"))
    folder, config, written = RunFolder.create(str(tmp_path), "mine"), Config(), tmp_path / "index.html"
    config.observe.trackers = ["kept"]
    (group, _), *_ = pairs()
    with Progress(1, console=Console(file=io.StringIO())) as progress:
        reporter = Reporter(config, folder, progress, lambda run: written)
        reporter.go_to(-1)
        reporter.write(1, complete_line({}), pairs(), Counter(), make_estimator("dr_grpo"))
        reporter.keep_evaluation(1, {"math": [group]})
        reporter.finish(RunState(1, 1, {}), {"dropped_rows": {}}, None, quiet=True)
        reporter.close()
    assert MADE.pop().given == [
        ("advantages", [0.5, -0.5]),
        ("eval/math", [("1/2", "correct"), ("1/2", "wrong")]),
        ("file", written),
    ]
    assert dump_of(folder.rollouts, 1, "eval").is_file()
    assert read_columns(dump_of(folder.rollouts, 1), ["advantage"])["advantage"].to_pylist() == [0.5, -0.5]


def test_steps_evaluations_and_samples_as_they_come(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path), "mine")
    said = report(
        folder,
        -1,
        {0: {"eval/a/mean": 0.25}, 1: {"reward/outcome/error": 1}, 2: {"eval/a/mean": 0.5}},
    )
    lines = said.splitlines()
    assert lines[0] == "evaluation of step 0  a 0.250"
    assert lines[1].startswith("step 1/4  reward 0.500")
    assert lines[1].endswith("  rewards failed 1/1")
    assert lines[2].startswith("step 2/4  reward 0.500")
    assert lines[3] == "evaluation of step 2  a 0.500 (+0.250)"
    assert lines[4] == "Sampled responses, step 2"
    assert "It is 42." in said
    assert "1.000 correct, advantage +0.500, 2 tokens" in said

    again = report(folder, 2, {3: {}, 4: {"eval/a/mean": 0.5}})
    assert "evaluation of step 4  a 0.500 (=)" in again  # as before the resume
    back = report(folder, 0, {4: {"eval/a/mean": 0.5}})
    assert "evaluation of step 4  a 0.500 (+0.250)" in back  # what was taken back is not compared with
