"""Rollouts are found page by page, whole, and with what is needed to see why they were graded so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_material import NUM_PROMPTS, PER_STEP, N, make_run

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.watch import rollouts
from hpt_ray.tools.watch.rollouts import PAGE_ROWS, Wanted, choices, find_group, group, pieces, search, tokens

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(make_run(tmp_path_factory.mktemp("runs"), steps=STEPS))


def every_page(folder: RunFolder, **asked: str) -> Iterator[dict]:
    after = None
    while True:
        page = search(folder, Wanted.of(asked), after)
        yield from page["rollouts"]
        if page["next"] is None:
            return
        after = tuple(page["next"])


def test_pages_hold_every_rollout_once_newest_step_first(folder: RunFolder) -> None:
    found = [(line["step"], line["row"]) for line in every_page(folder)]
    assert found == [(step, row) for step in range(STEPS, 0, -1) for row in range(PER_STEP * N)]
    assert len(search(folder, Wanted())["rollouts"]) == PAGE_ROWS


def test_a_page_ends_when_its_time_is_over(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "PAGE_S", 0.0)
    first = search(folder, Wanted())
    assert (first["searched"], len(first["rollouts"])) == (1, PER_STEP * N)
    assert len(list(every_page(folder))) == STEPS * PER_STEP * N


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        ({"outcome": "correct"}, lambda line: line["outcome"] == "correct"),
        ({"branch": "demonstration"}, lambda line: line["branch"] == "demonstration"),
        ({"min_score": "0.5"}, lambda line: line["score"] >= 0.5),
        ({"max_score": "0.5", "set": "mini"}, lambda line: line["score"] <= 0.5),
        ({"prompt": "mini/1"}, lambda line: "mini/1" in line["prompt_id"]),
        ({"text": "BOXED{2} 3"}, lambda line: line["sample"] == 3),
        ({"min_step": "2", "max_step": "4"}, lambda line: 2 <= line["step"] <= 4),
        (
            {"outcome": "correct", "min_step": "5"},
            lambda line: line["outcome"] == "correct" and line["step"] >= 5,
        ),
    ],
)
def test_filters(folder: RunFolder, asked: dict[str, str], holds) -> None:
    wanted = [line for line in every_page(folder) if holds(line)]
    assert 0 < len(wanted) < STEPS * PER_STEP * N
    assert list(every_page(folder, **asked)) == wanted


def test_filters_that_hold_for_nothing(folder: RunFolder) -> None:
    assert list(every_page(folder, text="no such text")) == []
    assert list(every_page(folder, min_tokens="4")) == []
    assert len(list(every_page(folder, max_tokens="3"))) == STEPS * PER_STEP * N
    with pytest.raises(ValueError, match="could not convert"):
        Wanted.of({"min_score": "high"})


def test_a_prompt_with_all_its_responses(folder: RunFolder) -> None:
    number = find_group(folder, 5, f"mini/{(4 * PER_STEP + 2) % NUM_PROMPTS}")
    found = group(folder, 5, number)
    assert (found["num_rollouts"], found["reference"], found["demonstration"]) == (N, "2", "It is 2.")
    assert [one["sample"] for one in found["responses"]] == list(range(N))
    assert {one["extracted"] for one in found["responses"]} <= {"2", "3"}
    assert found["responses"][0]["text"] == "1+1=2. \\boxed{2} 0"
    with pytest.raises(KeyError, match="prompt 99 in step 5"):
        group(folder, 5, 99)
    with pytest.raises(KeyError, match="dump of step 77"):
        group(folder, 77, 0)


def test_an_older_dump_without_demonstrations_is_shown(folder: RunFolder, tmp_path: Path) -> None:
    old = RunFolder(make_run(tmp_path, steps=1))
    path = old.rollouts / "step-000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["demonstration"]), path)
    assert group(old, 1, 0)["demonstration"] is None
    assert len(list(every_page(old))) == PER_STEP * N


def test_a_prompt_without_rollouts_is_a_line(tmp_path: Path) -> None:
    folder = RunFolder(make_run(tmp_path, steps=1, rollouts=False))
    assert [line["sample"] for line in every_page(folder)] == [None] * PER_STEP
    assert group(folder, 1, 0)["responses"] == []


def test_choices(folder: RunFolder, tmp_path: Path) -> None:
    assert choices(folder)["set"] == ["mini"]
    assert "no_answer" in choices(folder)["outcome"]
    assert choices(RunFolder(tmp_path))["set"] == []


def test_tokens_with_their_log_probs(folder: RunFolder) -> None:
    found = tokens(folder, 1, 0, iter([]))
    assert found == {"texts": ["[5]", "[6]", "[2]"], "logprobs": [-0.1] * 3, "decoded": False}
    with pytest.raises(KeyError, match="row 1000"):
        tokens(folder, 1, 1000, iter([]))


def test_pieces_make_up_the_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    text = "Fläche = 3 π 🙂"
    ids = tokenizer.encode(text).ids
    found = pieces(ids, file)
    assert len(found) == len(ids) > len(text)
    assert "".join(found) == text
    assert "ä" in found
    assert np.all([len(piece) <= 1 for piece in found])
