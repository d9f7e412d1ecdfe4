"""The pages for those who come from another trainer: each row is the hint that a run gives, each example has a plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpt_ray.cli import train
from hpt_ray.config.foreign import NAMES, meaning
from hpt_ray.config.load import known_keys
from hpt_ray.tools.plan import plan_run, survey
from hpt_ray.utils.arguments import READERS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ["from_trl", "from_verl"]


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def rows(page: str) -> list[list[str]]:
    table = re.findall(r"^\| `.*\|$", text(page).split("## Key by key")[1], re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def block(page: str, language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", text(page), re.DOTALL)[0]


@pytest.mark.parametrize("page", PAGES)
def test_each_row_says_what_a_run_says(page: str) -> None:
    assert len(rows(page)) > 40
    for name, key, note in rows(page):
        hint = meaning(name.strip("`"))
        assert hint is not None, name
        assert (key, note) == (f"`{hint[0]}`", hint[1].replace("|", "\\|")), name
        assert hint[0] in known_keys()
        assert name.strip("`") not in known_keys()


def test_every_dotted_name_of_verl_is_on_its_page() -> None:
    named = {name.strip("`") for name, _, _ in rows("from_verl")}
    assert {name for name in NAMES if "." in name} <= named


@pytest.mark.parametrize("page", PAGES)
def test_the_example_has_a_plan(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is not on this machine is missing: the model, and verl's files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(block(page, "yaml"), encoding="utf-8")
    (tmp_path / "rewards.py").write_text(block(page, "python"), encoding="utf-8")
    (tmp_path / "sums.jsonl").write_text('{"prompt": "What is 2 + 5?", "answer": "7"}\n', encoding="utf-8")
    config = train.configured(READERS["train"](["--config", "run.yaml"]))
    found, absent = survey(config)
    plan = plan_run(config, found)
    memories = [group.memory for group in plan.groups if group.gpus]
    assert memories
    assert all(memory is not None and memory.gib <= plan.gpu_gib for memory in memories)
    away = {
        "model.path",
        "room",
        *(["data.train", "evaluation.sets.held_out"] if page == "from_verl" else []),
    }
    assert {line.split(":")[0] for line in absent} <= away, absent
