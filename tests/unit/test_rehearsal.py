"""Which rows a step rehearses, and that the data card, the summary and the dry run know of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from hpt_ray.config.load import QUICKSTART, load_config
from hpt_ray.config.schema import Config
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.data_card import make_card
from hpt_ray.driver.setup import Prepared, prepare
from hpt_ray.errors import UserError
from hpt_ray.observe.data_card import DataCard, card_tables
from hpt_ray.tools.plan import survey


@pytest.fixture
def past(tmp_path: Path) -> Path:
    """Seven rows, two without a demonstration; none has a ground truth."""
    rows = [{"prompt": f"{i}+1=?", "completion": None if i in (2, 5) else f"{i + 1}"} for i in range(7)]
    file = tmp_path / "past.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def prepared_of(*words: str) -> tuple[Config, Prepared]:
    config = load_config(QUICKSTART, ["evaluation.sets={}", "evaluation.every=0", *words])
    return config, prepare(config, tokenizer_path(config.model.path))


def test_every_row_comes_once_an_epoch_and_a_phase_begins_anew(past: Path) -> None:
    data = f"data: {{rehearsal: [{past}], rehearsal_per_step: 4}}"
    _, prepared = prepared_of(
        "run.steps=12",
        f"phases=[{{steps: 2}}, {{steps: 5, updates_per_step: 2, {data}}}, {{steps: 5, {data}}}]",
    )
    without, halves, whole = prepared.phases
    assert without.rehearsed(1, 0) == []
    assert [term.stream for term in without.estimator.terms] == ["rollouts", "demonstrations"]
    assert [term.stream for term in halves.estimator.terms][2:] == ["rehearsal"]
    steps = [[halves.rehearsed(step, update) for update in (0, 1)] for step in range(3, 8)]
    rows = [row for step in steps for update in step for row in update]
    assert all(len(update) == 2 for step in steps for update in step)
    assert all(row.is_demo and row.is_rehearsal and row.response_length == 2 for row in rows)  # digit and end
    ids = [row.prompt_id for row in rows]
    epochs = [ids[i : i + 5] for i in range(0, 20, 5)]
    assert [len({*epoch}) for epoch in epochs] == [5] * 4
    assert len({*map(tuple, epochs)}) > 1, "each epoch has an order of its own"
    assert [row.prompt_id for step in range(8, 13) for row in whole.rehearsed(step, 0)] == ids


def test_the_data_card_and_the_summary_count_the_rows(past: Path) -> None:
    config, prepared = prepared_of(f"data.rehearsal=[{past}]", "data.rehearsal_per_step=4")
    assert prepared.dropped == {"no_demonstration (rehearsal)": 2}
    card = make_card(config, prepared)
    console = Console(width=120)
    with console.capture() as shown:
        console.print(card_tables(card))
    line = "7 rows read, 5 kept; dropped: 2 no_demonstration; 4 of them in each step"
    assert line in shown.get()
    assert card.warnings == []
    assert DataCard.from_json({"training": [], "evaluation": []}).training == ()
    past.write_text(past.read_text().replace('"completion": "', '"other": "'), encoding="utf-8")
    with pytest.raises(UserError, match=r"past\.jsonl: no prompt is left"):
        prepare(config, tokenizer_path(config.model.path))


def test_a_dry_run_says_what_is_not_here() -> None:
    config = load_config(
        QUICKSTART,
        ["data.rehearsal=[elsewhere.parquet]", "data.rehearsal_per_step=4", "cluster.address=local"],
    )
    found, absent = survey(config, ask_room=False)
    assert found is None
    assert "data.rehearsal: elsewhere.parquet is not here" in absent
