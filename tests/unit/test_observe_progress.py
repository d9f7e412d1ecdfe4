"""The line of a step, the line that is alive, and the time left: on terminals of any width, in files and notebooks."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from hpt_ray.observe.progress import Pace, Progress
from hpt_ray.observe.step_line import (
    evaluation_parts,
    failures,
    in_lines,
    in_one_line,
    short_count,
    short_seconds,
    short_time,
    step_parts,
)

STEP = {
    "reward/mean": 0.4234,
    "selection/demo_share": 0.311,
    "rollout/length_mean": 311.6,
    "policy/entropy": 0.3121,
    "loss/total": 0.1234,
    "rollout/tokens_per_s": 12345.0,
    "time/step_s": 4.12,
    "learner/skipped_updates": 0,
    "rollout/truncated_ratio": 0.0,
}
WRONG = {
    "reward/outcome/correct": 50,
    "reward/outcome/error": 8,
    "reward/outcome/timeout": 4,
    "reward/outcome/unparsable": 2,
    "rollout/finish/lost": 1,
    "learner/skipped_updates": 1,
    "rollout/truncated_ratio": 0.25,
    "faults/learner_restarted": 1,
    "observe/trackers_disabled": 1,
}
ESCAPE = re.compile("\x1b\\[[0-9;?]*[a-zA-Z]")


class Clock:
    """A clock that is set by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def written(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def train(progress: Progress, clock: Clock, steps: range, step_s: float, metrics: dict[str, Any]) -> None:
    for step in steps:
        progress.phase("rollout")
        clock.now_s += step_s
        progress.finish_step(step, metrics)


def test_the_line_says_it_all() -> None:
    assert in_one_line(step_parts(12, 100, STEP, 754), None).plain == (
        "step  12/100  reward 0.423  demos  31%  length 312  entropy 0.31  loss 0.123  12k tok/s  4.1s/step"
        "  12m34s left"
    )
    assert in_one_line(step_parts(1, 9, {"learner/tokens_per_s": 80.0}, None), None).plain == (
        "step 1/9  80 tok/s"
    )


def test_a_reward_after_a_prefix_is_told_apart() -> None:
    """With UFT all rollouts may have one, and then there is no other reward."""
    both = in_one_line(step_parts(12, 100, STEP | {"reward/prefix_mean": 0.5}, None), None).plain
    assert "reward 0.423  prefix reward 0.500  demos" in both
    alone = in_one_line(step_parts(1, 9, {"reward/mean": None, "reward/prefix_mean": 0.25}, None), None).plain
    assert alone == "step 1/9  prefix reward 0.250"


def test_at_80_columns_the_most_important_stays() -> None:
    assert in_one_line(step_parts(12, 100, STEP, 754), 79).plain == (
        "step  12/100  reward 0.423  demos  31%  length 312  4.1s/step  12m34s left"
    )
    assert "tok/s" in in_one_line(step_parts(12, 100, STEP, 754), 199).plain


@pytest.mark.parametrize("width", range(1, 120))
def test_the_line_fits_and_loses_whole_parts(width: int) -> None:
    whole = in_one_line(step_parts(12, 100, STEP, 754), None).plain.split("  ")
    lines = in_one_line(step_parts(12, 100, STEP, 754), width).plain.splitlines()
    assert max(map(len, lines)) <= max(width, len("  reward 0.423"))
    assert set("  ".join(line.strip() for line in lines).split("  ")) <= set(whole)
    assert len(lines) == 1 or width < 26


def test_failures_are_there_at_any_width_and_in_colour() -> None:
    for width in (40, 80, 200):
        line = in_one_line(step_parts(12, 100, STEP | WRONG, 754), width)
        assert line.plain.startswith("step  12/100  reward 0.423")
        assert max(map(len, line.plain.splitlines())) <= width
        for part in ("rewards failed 12/64", "rollouts lost 1", "updates skipped 1", "learner restarted 1"):
            assert part in line.plain
        styles = {line.plain[span.start : span.end]: str(span.style) for span in line.spans}
        assert styles["rewards failed 12/64"] == "bold red"
        assert styles["truncated 25%"] == styles["unparsable 2"] == styles["trackers off 1"] == "yellow"
    assert failures(STEP) == []
    assert [part.text for part in failures({"rollout/truncated_ratio": 0.004})] == ["truncated 0.4%"]


def test_numbers_are_short() -> None:
    numbers = (0, 949.6, 999.4, 999.9, 1234, 9949, 9960, 34567, 999_600, 5.6e6, 1.2e9)
    assert [short_count(number) for number in numbers] == [
        "0", "950", "999", "1.0k", "1.2k", "9.9k", "10k", "35k", "1.0M", "5.6M", "1.2G",
    ]  # fmt: skip
    times = (0, 42.4, 59.6, 185, 3599.7, 7620, 90000)
    assert [short_time(time) for time in times] == ["0s", "42s", "1m00s", "3m05s", "1h00m", "2h07m", "1d01h"]
    assert [short_seconds(time) for time in (0.04, 9.2, 9.96, 185)] == ["0.0s", "9.2s", "10s", "3m05s"]


def test_start_up_and_the_first_step_are_not_in_the_time_left() -> None:
    clock = Clock()
    pace = Pace(100, clock)
    pace.enter("starting · vLLM")
    clock.now_s += 300
    pace.enter("rollout")
    assert pace.left(0) is None
    clock.now_s += 30  # warming up
    pace.step_done(1, {})
    assert pace.left(1) == pytest.approx(99 * 30)  # all that is known
    for step in range(2, 30):
        pace.enter("rollout")
        clock.now_s += 2
        pace.step_done(step, {})
        assert pace.left(step) == pytest.approx((100 - step) * 2)
    clock.now_s += 2
    pace.enter("recover")
    clock.now_s += 500
    pace.enter("rollout")
    clock.now_s += 2
    pace.step_done(30, {})
    assert pace.left(30) == pytest.approx(70 * 2)


def test_the_last_steps_count_and_not_those_long_ago() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    pace.enter("rollout")
    for step in range(1, 101):
        clock.now_s += 1 if step <= 80 else 3
        pace.step_done(step, {})
    assert pace.left(100) == pytest.approx(900 * 3)


def test_evaluations_and_checkpoints_count_as_often_as_they_are_due() -> None:
    clock = Clock()
    pace = Pace(100, clock)
    pace.every = {"time/evaluation_s": 20, "time/checkpoint_s": 0}
    pace.enter("evaluate")
    clock.now_s += 40
    pace.step_done(0, {"time/evaluation_s": 40.0})
    for step in range(1, 31):
        evaluates = step % 20 == 0
        clock.now_s += 42 if evaluates else 2
        pace.step_done(step, {"time/evaluation_s": 40.0} if evaluates else {})
    assert pace.left(30) == pytest.approx(70 * 2 + 4 * 40)  # after steps 40, 60, 80 and 100
    clock.now_s += 7
    pace.step_done(31, {"time/checkpoint_s": 5.0})  # a best one; one more comes after the last step
    assert pace.left(31) == pytest.approx(69 * 2 + 4 * 40 + 5)


def test_in_a_file_each_slow_step_is_one_plain_line() -> None:
    console, clock = Console(file=io.StringIO(), width=80), Clock()
    with Progress(6, console=console, clock=clock) as progress:
        progress.phase("starting · vLLM workers")
        train(progress, clock, range(1, 7), 3.0, STEP | {"rollout/truncated_ratio": 0.5})
    lines = written(console).splitlines()
    assert lines[0] == "starting · vLLM workers"
    assert [line[:8] for line in lines[1:]] == [f"step {step}/6" for step in range(1, 7)]
    assert lines[1].endswith("tok/s  4.1s/step  15s left  truncated 50%")  # all of it: a file has no width
    assert lines[6].endswith("0s left  truncated 50%")
    assert "\x1b" not in written(console)


def test_of_fast_steps_one_every_two_seconds_and_those_with_failures() -> None:
    console, clock = Console(file=io.StringIO(), width=80), Clock()
    with Progress(100, console=console, clock=clock) as progress:
        train(progress, clock, range(1, 51), 0.1, STEP)
        train(progress, clock, range(51, 52), 0.1, STEP | {"reward/outcome/error": 1})
        train(progress, clock, range(52, 101), 0.1, STEP)
    steps = [int(step) for step in re.findall(r"^step +(\d+)/100  reward", written(console), re.MULTILINE)]
    assert steps[0] == 1
    assert steps[-1] == 100
    assert 51 in steps
    assert 6 <= len(steps) <= 9


def test_in_a_file_a_long_step_gives_a_sign_of_life() -> None:
    console, clock = Console(file=io.StringIO(), width=80), Clock()
    with Progress(9, console=console, clock=clock) as progress:
        progress.phase("evaluate")
        assert written(console).splitlines()[-1] == "step 0/9  evaluate  0s"
        progress.finish_step(0, {"eval/chain/mean": 0.5})
        train(progress, clock, range(1, 2), 100, {})
        progress.phase("rollout")
        clock.now_s += 80
        progress.phase("learn")
        progress.phase("sync")
    assert written(console).splitlines()[-1] == "step 2/9  learn  1m20s  12m00s left"


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_steps_stay_above_a_line_that_is_alive(width: int) -> None:
    console, clock = Console(file=io.StringIO(), width=width, force_terminal=True), Clock()
    with Progress(5, console=console, clock=clock) as progress:
        train(progress, clock, range(1, 3), 3.0, STEP | WRONG)
        progress.show("a table")
        progress.warn("a worker failed")
        progress.phase("learn")
        clock.now_s += 2
        assert progress._live is not None
        progress._live.refresh()
    output = written(console)
    assert "\x1b[1;31mrewards failed 12/64\x1b[0m" in output
    assert "\x1b[33ma worker failed\x1b[0m" in output
    assert "\x1b[2K" in output  # the live line is erased and drawn again
    plain = ESCAPE.sub("", output)
    assert "step 1/5  reward 0.423" in plain
    assert "step 3/5  learn  2s  7s left" in plain
    assert max(len(line.rsplit("\r", 1)[-1]) for line in plain.splitlines()) <= width


def test_a_notebook_gets_lines_and_nothing_that_is_redrawn() -> None:
    console, clock = Console(file=io.StringIO(), width=80, force_jupyter=True), Clock()
    with Progress(3, console=console, clock=clock) as progress:
        assert progress._live is None
        train(progress, clock, range(1, 4), 3.0, STEP)
    assert "\x1b[2K" not in written(console)


def test_an_evaluation_is_compared_with_the_one_before() -> None:
    metrics = {"eval/chain/mean": 0.8125, "eval/geo/mean": 0.5, "eval/geo/demonstration_loss": 1.0}
    first = in_lines(evaluation_parts(0, metrics | {"time/evaluation_s": 3.12}, {}), None)
    assert first.plain == "evaluation of step 0  mean 0.656  chain 0.812  geo 0.500  3.1s"
    later = in_lines(evaluation_parts(25, metrics, {"chain": 0.7, "geo": 0.5}), None)
    assert later.plain == "evaluation of step 25  mean 0.656 (+0.056)  chain 0.812 (+0.113)  geo 0.500 (=)"
    worse = in_lines(evaluation_parts(25, {"eval/chain/mean": 0.5}, {"chain": 0.7}), None)
    assert worse.plain == "evaluation of step 25  chain 0.500 (-0.200)"
    assert "red" in {str(span.style) for span in worse.spans}
    assert evaluation_parts(25, STEP, {"chain": 0.7}) == []
    failed = in_lines(evaluation_parts(0, {"eval/a/mean": 0.5, "eval/a/failure_share": 0.25}, {}), None)
    assert failed.plain == "evaluation of step 0  a 0.500  a rewards failed 25%"
    assert "bold red" in {str(span.style) for span in failed.spans}


@pytest.mark.parametrize("width", [30, 79, 199])
def test_an_evaluation_of_many_sets_breaks_between_sets(width: int) -> None:
    metrics = {f"eval/set{i}/mean": i / 10 for i in range(9)}
    parts = evaluation_parts(25, metrics, {f"set{i}": 0.5 for i in range(9)})
    lines = in_lines(parts, width).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert "  ".join(line.strip() for line in lines) == in_lines(parts, None).plain
