"""What a person sees: the progress line, the tables, and that both fit into 80 columns."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, RenderableType

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.schema import Config
from hpt_ray.observe.progress import Progress, ProgressState, progress_line, short_count, short_time
from hpt_ray.observe.tables import batch_facts, end_summary, shorten, start_summary, table_of_samples
from hpt_ray.types import Decision, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

STATE = ProgressState(100, "rollout", 12, 0.4234, 0.311, 12345, 754)


def rendered(renderable: RenderableType, width: int = 80) -> str:
    """The text as a terminal of `width` columns shows it; no line is longer."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= width
    return text


def sample(text: str, outcome: Outcome, *, prompt: str = "What is 6*7?") -> Group:
    ids = np.array([1, 2], dtype=np.int32)
    prompt = Prompt("mini/1", ids, prompt, "42", "mini")
    rollout = Rollout("mini/1", 0, ids, np.zeros(2, np.float32), FinishReason.STOP, 3, text)
    return Group(prompt, [rollout], [RewardResult(float(outcome is Outcome.CORRECT), outcome)])


def test_the_line_says_it_all() -> None:
    assert (
        progress_line(STATE) == "step 12/100 · rollout   · reward 0.423 · demos 31% · 12k tok/s · 12m34s left"
    )
    assert progress_line(ProgressState(100)) == "step 0/100 · starting"


@pytest.mark.parametrize("width", range(1, 90))
def test_the_line_fits_and_loses_whole_parts(width: int) -> None:
    line = progress_line(STATE, width)
    assert len(line) <= width
    if width >= 11:
        assert set(line.split(" · ")) <= set(progress_line(STATE, 200).split(" · ")) | {"rollout"}


def test_numbers_are_short() -> None:
    numbers = (0, 949.6, 999.4, 999.9, 1234, 9949, 9960, 34567, 999_600, 5.6e6, 1.2e9)
    assert [short_count(number) for number in numbers] == [
        "0", "950", "999", "1.0k", "1.2k", "9.9k", "10k", "35k", "1.0M", "5.6M", "1.2G",
    ]  # fmt: skip
    times = (0, 42.4, 59.6, 185, 3599.7, 7620, 90000)
    assert [short_time(time) for time in times] == ["0s", "42s", "1m00s", "3m05s", "1h00m", "2h07m", "1d01h"]


def test_without_a_terminal_a_plain_line_comes_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=80)
    with Progress(total=50, console=console, interval_s=3600) as progress:
        for step in range(1, 51):
            progress.phase("rollout")
            progress.finish_step(step, reward=0.5, demo_ratio=0.25, tokens_per_s=100)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2  # the first sign of life, and the last step whatever the interval
    assert lines[0] == "step 0/50 · rollout"
    assert lines[1].startswith("step 50/50 · rollout   · reward 0.500 · demos 25% · 100 tok/s")
    assert lines[1].endswith("0s left")


def test_without_an_interval_every_change_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=80)
    with Progress(total=2, console=console, interval_s=0) as progress:
        for step in (1, 2):
            progress.phase("rollout")
            progress.phase("learn")
            progress.finish_step(step, reward=None, demo_ratio=None, tokens_per_s=None)
    assert len(console.file.getvalue().splitlines()) == 6  # type: ignore[attr-defined]


def test_on_a_terminal_one_line_is_redrawn_and_tables_stay_above() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with Progress(total=5, console=console) as progress:
        progress.phase("learn")
        progress.show("a table")
        progress.finish_step(1, reward=None, demo_ratio=None, tokens_per_s=None)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a table" in output
    assert "learn" in output
    assert "\x1b[2K" in output  # the line is erased and drawn again


def test_what_follows_from_the_three_sizes() -> None:
    config = Config(prompts_per_step=128, group_size=8, updates_per_step=2)
    facts = batch_facts(config)
    assert facts["rollouts per step"] == 1024
    assert facts["prompts per update"] == 64
    assert facts["optimizer steps in all"] == 200
    rows = {}
    for gate in ("auto", *GATES):
        config.selection.gate = gate
        rows[gate] = batch_facts(config)["samples per step, at most"]
    assert rows == {
        "switch": 1024, "rollouts": 1024, "demonstrations": 128, "both": 1152, "auto": 1152,
        "posterior": 1152, "linear": 1152, "official_soft": 1152,
    }  # fmt: skip
    assert batch_facts(config)["tokens per step, at most"] == 1152 * 9216


def test_the_start_summary_names_sizes_and_folder() -> None:
    config = Config()
    config.model.path = "mini:small"
    text = rendered(
        start_summary(
            config,
            title="Training run for 100 steps",
            algorithm_mode="demonstrations where no rollout is right, else Dr. GRPO",
            folder=Path("runs/quickstart-20260101-101010"),
        )
    )
    for part in (
        "prompts_per_step",
        "1,024",
        "32,768",
        "runs/quickstart-",
    ):
        assert part in text


def test_samples_show_prompt_answer_reference_and_result() -> None:
    pairs = [
        (sample("6*7=42. \\boxed{42}", Outcome.CORRECT), Decision(1, 0, 3, 8, "solved")),
        (sample("[/red] I [bold]give up", Outcome.NO_ANSWER), Decision(0, 1, 0, 8, "unsolved")),
        (Group(sample("", Outcome.WRONG).prompt, [], []), Decision(0, 1, 0, 0, "no_rollouts")),
    ]
    text = rendered(table_of_samples(pairs, step=25))
    for part in (
        "step 25",
        "What is 6*7?",
        "\\boxed{42}",
        "correct",
        "no_answer",
        "rollouts",
        "demonstration",
    ):
        assert part in text
    assert "[/red] I" in text  # an answer is never read as markup
    assert text.count("What is") == 2
    assert "3/8 correct" in text


def test_long_texts_keep_beginning_and_end() -> None:
    long = "start " + "x" * 5000 + " \\boxed{7}"
    short = shorten(long, 100)
    assert len(short) <= 100
    assert short.startswith("start")
    assert short.endswith("\\boxed{7}")
    assert shorten("  as it is \n", 100) == "as it is"
    text = rendered(
        table_of_samples([(sample(long, Outcome.WRONG), Decision(0, 1, 0, 8, "unsolved"))], step=1)
    )
    assert len(text.splitlines()) < 20


def test_the_end_summary_says_what_came_out_and_where_to_look() -> None:
    points = {
        "first": {"step": 0, "mean": 0.2},
        "best": {"step": 80, "mean": 0.96},
        "last": {"step": 100, "mean": 0.95},
    }
    summary = {
        "steps": 100,
        "wall_s": 143.2,
        "evaluations": {"id": points},
        "dropped_rows": {},
        "failures": {"timeout": 2},
    }
    text = rendered(end_summary(summary, Path("runs/demo-20260101-101010")))
    for part in (
        "100 steps in 2m23s",
        "0.200 (step 0)",
        "0.960 (step 80)",
        "0.950 (step 100)",
        "2 timeout",
        "none",
    ):
        assert part in text
    assert "runs/demo-20260101-101010/checkpoints" in text
    assert "evaluation" not in rendered(end_summary({**summary, "evaluations": {}}, Path("runs/x")))
