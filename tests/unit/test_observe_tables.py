"""The tables a person sees, and that they fit into 80 columns."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, RenderableType

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.schema import Config
from hpt_ray.observe.tables import Shown, batch_facts, end_summary, shorten, start_summary, table_of_samples
from hpt_ray.types import Decision, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout


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
        "posterior": 1152, "linear": 1152, "official_soft": 1152, "prefixes": 1152,
    }  # fmt: skip
    assert batch_facts(config)["tokens per step, at most"] == 1152 * 9216


def test_the_start_summary_names_sizes_and_folder() -> None:
    config = Config()
    config.model.path = "mini:small"
    text = rendered(
        start_summary(
            config,
            title="Training run for 100 steps",
            folder=Path("runs/quickstart-20260101-101010"),
        )
    )
    for part in (
        "hpt: default",
        "prompts_per_step",
        "1,024",
        "32,768",
        "runs/quickstart-",
    ):
        assert part in text


def shown(text: str, outcome: Outcome, decision: Decision, advantage: float | None = None) -> Shown:
    group = sample(text, outcome)
    return Shown(group, decision, group.rollouts[0], group.results[0], advantage)


def test_samples_show_prompt_answer_reference_reward_and_advantage() -> None:
    samples = [
        shown("6*7=42. \\boxed{42}", Outcome.CORRECT, Decision(1, 0, 3, 8, "solved"), 0.625),
        shown("[/red] I [bold]give up", Outcome.NO_ANSWER, Decision(0, 1, 0, 8, "unsolved")),
    ]
    text = rendered(table_of_samples(samples, step=25))
    for part in (
        "step 25",
        "What is 6*7?",
        "\\boxed{42}",
        "1.000 correct, advantage +0.625, 2 tokens",
        "0.000 no_answer, 2 tokens",
        "rollouts, 3/8 correct",
        "demonstration, 0/8 correct",
        "[/red] I [bold]give",  # an answer is never read as markup
    ):
        assert part in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_an_answer_can_be_read_whole_and_uses_the_width(width: int) -> None:
    words = [f"word{i}" for i in range(200)]
    table = table_of_samples(
        [shown(" ".join(words), Outcome.WRONG, Decision(0, 1, 0, 8, "unsolved"))], step=1
    )
    text = rendered(table, width)
    assert [word for word in text.split() if word.startswith("word")] == words
    assert max(len(line) for line in text.splitlines()) > width - 10


def test_a_response_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 \x9b31m back\rspace \u202eevil\u202c \ud800 end"
    group = sample(hostile, Outcome.ERROR, prompt=hostile)
    result = RewardResult(0.0, Outcome.ERROR, extracted=hostile, detail=hostile)
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    sight = Shown(group, Decision(1, 0, 0, 1, "always"), group.rollouts[0], result, None)
    console.print(table_of_samples([sight], step=1))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert set(re.findall("\x1b[^m]*m", text)) <= set(re.findall("\x1b\\[[0-9;]*m", text))  # only colours
    assert "\x1b]" not in text
    assert not set(text) & set("\x07\x9b\r\u202e\u202c\ud800")
    assert text.count("␛]0;owned␇") == 4


def test_long_texts_keep_beginning_and_end() -> None:
    long = "start " + "x" * 5000 + " \\boxed{7}"
    short = shorten(long, 100)
    assert len(short) <= 100
    assert short.startswith("start")
    assert short.endswith("\\boxed{7}")
    assert shorten("  as it is \n", 100) == "as it is"


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
