"""The journal: a kill at any byte loses at most the answer that was being written."""

from __future__ import annotations

import json
import multiprocessing
import random

import numpy as np
import pytest

from hpt_ray.errors import UserError
from hpt_ray.evaluation.journal import Journal
from hpt_ray.evaluation.results import read_results, result_of, write_results
from hpt_ray.types import FinishReason, Outcome, Prompt, RewardResult, Rollout

PROMPTS = [
    Prompt(f"s/{i}", np.array([1], np.int32), f"q{i}", str(i), "s", extra={"level": i % 3}) for i in range(5)
]
SAMPLES = 4
IDENTITY = {"model": "m", "seed": 0, "benchmarks": {"b": {"temperature": 1.0}}}
WANTED = {("b", q.id): SAMPLES for q in PROMPTS}


def answer(prompt: Prompt, sample: int) -> tuple[Rollout, RewardResult]:
    """A function of prompt and sample, as with seeds."""
    draw = random.Random(f"{prompt.id}/{sample}")
    outcome = draw.choice([Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.TIMEOUT])
    finish = draw.choice([FinishReason.STOP, FinishReason.LENGTH])
    length = draw.randrange(1, 99)
    rollout = Rollout("k", 0, np.zeros(length, np.int32), np.zeros(length, np.float32), finish, 0, "text ☃")
    return rollout, RewardResult(float(outcome is Outcome.CORRECT), outcome, "x")


def go_on(folder, order, *, limit=None, keep_text=False) -> Journal:
    journal = Journal(folder, IDENTITY, WANTED)
    missing = list(journal.missing([("b", q.id) for q in PROMPTS]))
    order.shuffle(missing)
    for i, sample in missing[:limit]:
        journal.add("b", PROMPTS[i], sample, *answer(PROMPTS[i], sample), keep_text=keep_text)
    return journal


def finish(folder, journal) -> bytes:
    assert journal.num_missing == 0
    results = [result_of("b", q, "level", journal.tallies["b", q.id]) for q in PROMPTS]
    journal.close()
    return write_results(folder, results).read_bytes()


def test_cut_at_any_byte_and_resumed_it_ends_with_the_same_file(tmp_path):
    whole = finish(tmp_path / "whole", go_on(tmp_path / "whole", random.Random(0)))
    written = (tmp_path / "whole" / "samples.jsonl").read_bytes()
    for trial in range(25):
        folder = tmp_path / f"cut-{trial}"
        go_on(folder, random.Random(trial), limit=0).close()
        cut = random.Random(trial).randrange(len(written))
        (folder / "samples.jsonl").write_bytes(written[:cut])
        journal = go_on(folder, random.Random(-trial))
        assert finish(folder, journal) == whole
        lines = [json.loads(line) for line in (folder / "samples.jsonl").open()]
        assert len(lines) == len({(line["id"], line["sample"]) for line in lines}) == SAMPLES * len(PROMPTS)


def test_rows_say_what_came_of_each_prompt(tmp_path):
    finish(tmp_path, go_on(tmp_path, random.Random(3)))
    for row, prompt in zip(read_results(tmp_path), PROMPTS, strict=True):
        answers = [answer(prompt, sample) for sample in range(SAMPLES)]
        assert (row.benchmark, row.prompt_id, row.n) == ("b", prompt.id, SAMPLES)
        assert row.level == str(prompt.extra["level"])
        assert row.correct == sum(result.correct for _, result in answers)
        assert row.correct + row.wrong + row.no_answer + row.unparsable + row.timeout + row.error == SAMPLES
        assert row.timeout == sum(result.outcome is Outcome.TIMEOUT for _, result in answers)
        assert row.mean_tokens == np.mean([len(rollout.token_ids) for rollout, _ in answers])
        assert row.truncated == sum(rollout.truncated for rollout, _ in answers)


def test_more_samples_go_on_where_fewer_stopped(tmp_path):
    finish(tmp_path, go_on(tmp_path, random.Random(0)))
    more = Journal(tmp_path, IDENTITY, dict.fromkeys(WANTED, 6))
    assert more.num_done == SAMPLES * len(PROMPTS)
    assert list(more.missing([("b", "s/2")])) == [(0, 4), (0, 5)]
    more.close()
    fewer = Journal(tmp_path, IDENTITY, dict.fromkeys(WANTED, 2))
    assert (fewer.num_done, fewer.num_missing) == (10, 0)
    fewer.close()


def test_texts_are_kept_only_where_asked_for(tmp_path):
    go_on(tmp_path / "no", random.Random(0), limit=3).close()
    assert "☃" not in (tmp_path / "no" / "samples.jsonl").read_text()
    go_on(tmp_path / "yes", random.Random(0), limit=3, keep_text=True).close()
    line = json.loads((tmp_path / "yes" / "samples.jsonl").read_text().splitlines()[0])
    assert (line["text"], line["extracted"]) == ("text ☃", "x")


def test_answers_of_other_settings_are_refused_by_name(tmp_path):
    go_on(tmp_path, random.Random(0), limit=2).close()
    other = {"model": "m", "seed": 1, "benchmarks": {"b": {"temperature": 0.6}}}
    with pytest.raises(
        UserError, match=r"(?s)seed: 0 then, 1 now.*benchmarks\.b\.temperature: 1\.0 then, 0\.6 now"
    ):
        Journal(tmp_path, other, WANTED)
    Journal(tmp_path, {**IDENTITY, "benchmarks": {"c": {"temperature": 0.6}}}, {}).close()
    assert set(json.loads((tmp_path / "identity.json").read_text())["benchmarks"]) == {"b", "c"}


def _open(folder, failures):
    try:
        Journal(folder, IDENTITY, WANTED)
    except UserError as error:
        failures.put(str(error))


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    journal = Journal(tmp_path, IDENTITY, WANTED)
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    process = context.Process(target=_open, args=(tmp_path, failures))
    process.start()
    assert "Another evaluation is writing" in failures.get(timeout=60)
    process.join(10)
    journal.close()
