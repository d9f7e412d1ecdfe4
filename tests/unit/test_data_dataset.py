"""The set of prompts: every row is accounted for, nothing is cut, and memory stays bounded."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpt_ray.config.schema import DataConfig
from hpt_ray.data.dataset import load_prompts
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.template import Template
from hpt_ray.errors import UserError
from hpt_ray.utils.cache import cached_folder

TEMPLATE = Template(DataConfig(template="plain", add_bos=True), build_tokenizer())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def row(index, prompt="Compute 4*3-6.", target="4*3-6=6. \\boxed{6}", ground_truth="6", **extra_info):
    return {
        "data_source": "mini/expr",
        "prompt": prompt,
        "target": target,
        "reward_model": {"ground_truth": ground_truth},
        "extra_info": {"index": index, **extra_info},
    }


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def load(*paths, max_prompt_tokens=8, max_response_tokens=12, demonstrations="required", **options):
    return load_prompts(
        paths,
        TEMPLATE,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        demonstrations=demonstrations,
        **options,
    )


MIXED = [
    row(0),
    row(1, ground_truth=None),
    row(2, ground_truth=""),
    row(3, prompt="  "),
    row(4, prompt="Compute 4*3-6. Compute 4*3-6."),
    row(5, target="4*3-6=6. \\boxed{06}"),  # 13 tokens with the end token
    row(6, target=None),
    row(7, target=" "),
    row(8, target="6 <eos> 6"),
    row(0),
    row(9, ground_truth=["6", "six"], level=3),
]


def test_every_row_is_kept_or_dropped_for_a_reason(tmp_path):
    prompts = load(write(tmp_path / "a.jsonl", MIXED))
    assert prompts.dropped == {
        "no_ground_truth": 2,
        "empty_prompt": 1,
        "prompt_too_long": 1,
        "demonstration_too_long": 1,
        "no_demonstration": 2,
        "demonstration_past_end": 1,
        "duplicate": 1,
    }
    report = prompts.report()
    assert (report["rows"], report["kept"]) == (11, 2)
    assert report["kept"] + sum(prompts.dropped.values()) == report["rows"]
    assert [prompts[i].id for i in range(len(prompts))] == ["mini/expr/0", "mini/expr/9"]


def test_optional_demonstrations_are_left_out_and_the_prompt_stays(tmp_path):
    prompts = load(write(tmp_path / "a.jsonl", MIXED), demonstrations="optional")
    report = prompts.report()
    assert len(prompts) == 6
    assert report["kept"] + sum(prompts.dropped.values()) == report["rows"]
    left_out = {name.split("/")[1]: count for name, count in report.items() if "left_out" in name}
    assert left_out == {"demonstration_too_long": 1, "no_demonstration": 2, "demonstration_past_end": 1}
    with_demonstration = [prompts[i].id for i in range(6) if prompts[i].demonstration]
    assert with_demonstration == ["mini/expr/0", "mini/expr/9"]


def test_ignored_demonstrations_are_not_looked_at(tmp_path):
    prompts = load(write(tmp_path / "a.jsonl", MIXED), demonstrations="ignored")
    assert len(prompts) == 6
    assert all(prompts[i].demonstration is None for i in range(6))
    assert prompts.report()["demonstrations"] == 0


def test_a_prompt_carries_its_tokens_and_what_the_reward_function_needs(tmp_path):
    prompt = load(write(tmp_path / "a.jsonl", MIXED))[1]
    assert prompt.text == "Compute 4*3-6."
    assert prompt.token_ids.tolist() == [1, 53, 7, 15, 6, 14, 9, 17]
    assert prompt.demonstration.token_ids.tolist() == [7, 15, 6, 14, 9, 16, 9, 17, 21, 9, 22, 2]
    assert prompt.demonstration.text == "4*3-6=6. \\boxed{6}"
    assert prompt.ground_truth == ["6", "six"]
    assert prompt.data_source == "mini/expr"
    further = {"data_source": "mini/expr", "reward_model": {"ground_truth": ["6", "six"]}}
    assert prompt.extra == {**further, "index": 9, "level": 3}
    assert prompt.source == "Compute 4*3-6."
    for ids in (prompt.token_ids, prompt.demonstration.token_ids):
        assert ids.dtype == np.int32
        assert ids.flags.writeable


def test_exact_limits_fit_and_one_token_less_does_not(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(0)])
    assert len(load(path, max_prompt_tokens=8, max_response_tokens=12)) == 1
    with pytest.raises(UserError, match="1 prompt_too_long"):
        load(path, max_prompt_tokens=7)
    with pytest.raises(UserError, match=r"a\.jsonl: no prompt is left \(1 demonstration_too_long\)"):
        load(path, max_response_tokens=11)


def test_a_set_without_rows_or_without_files(tmp_path):
    with pytest.raises(UserError, match="the files are empty"):
        load(write(tmp_path / "a.jsonl", []))
    with pytest.raises(UserError, match=r"data\.train"):
        load()


def test_ids_are_unique_over_files_that_count_from_zero_each(tmp_path):
    first = write(tmp_path / "first.jsonl", [row(0), row(1)])
    second = write(
        tmp_path / "second.jsonl", [row(0, prompt="Compute 5*3-6."), row(1, prompt="Compute 4*4.")]
    )
    third = write(tmp_path / "third.jsonl", [row(None, split="train"), row(0, split="train")])
    prompts = load(first, second, third)
    ids = [prompts[i].id for i in range(len(prompts))]
    assert ids == [
        "mini/expr/0",
        "mini/expr/1",
        f"mini/expr/0@{tmp_path.name}/second:1",
        f"mini/expr/1@{tmp_path.name}/second:2",
        "mini/expr/third:1",
        "mini/expr/train/0",
    ]
    assert not prompts.dropped


def test_random_access_agrees_with_file_order_over_many_batches(tmp_path):
    digits = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    rows = [row(i, prompt=f"Compute {a}*{b}+{c}.") for i, (a, b, c) in enumerate(digits)]
    for i in range(200, 500):
        rows[i]["reward_model"]["ground_truth"] = None  # whole batches without a row that is kept
    prompts = load(write(tmp_path / "a.jsonl", rows))
    kept = [*range(200), *range(500, 1000)]
    assert len(prompts) == len(kept)
    order = np.random.default_rng(0).permutation(len(kept))
    assert [prompts[i].extra["index"] for i in order] == [kept[i] for i in order]
    with pytest.raises(IndexError):
        prompts[len(kept)]


def test_tokenised_once_and_again_when_anything_changes(tmp_path, cache):
    path = tmp_path / "a.jsonl"
    write(path, [row(0)])
    calls = []
    for _ in range(2):
        assert len(load(str(path), on_progress=calls.append)) == 1
    assert calls == [1]
    load(str(path), max_response_tokens=13, on_progress=calls.append)
    assert calls == [1, 1]
    write(path, [row(0), row(1)])
    assert len(load(str(path), on_progress=calls.append)) == 2
    assert calls == [1, 1, 2]
    assert len(list((cache / "prompts").iterdir())) == 3


def test_an_error_half_way_leaves_nothing_behind(tmp_path, cache):
    path = write(tmp_path / "a.jsonl", [*(row(i) for i in range(300)), row(300, target=5)])
    with pytest.raises(UserError, match="row 301"):
        load(path)
    assert list((cache / "prompts").iterdir()) == []


def test_a_prompt_that_cannot_be_rendered_names_its_row(tmp_path):
    turns = [{"role": role, "content": "6"} for role in ("user", "assistant", "user")]
    with pytest.raises(UserError, match=r"a\.jsonl, row 2: the prompt has the roles user, assistant, user"):
        load(write(tmp_path / "a.jsonl", [row(0), row(1, prompt=turns)]))


def test_the_mini_task_loads_by_name_with_every_row():
    prompts = load("mini:train", max_prompt_tokens=25, max_response_tokens=29)
    report = prompts.report()
    assert (report["rows"], report["kept"], report["demonstrations"]) == (600, 600, 600)
    assert report["prompt_tokens_mean"] == pytest.approx(14, abs=0.5)
    assert report["demonstration_tokens_mean"] == pytest.approx(17, abs=0.5)


def test_a_cached_folder_is_complete_or_absent(tmp_path):
    together = threading.Barrier(4)

    def build(folder):
        together.wait(timeout=10)  # all four build at the same time
        (folder / "a").write_text("a")

    def ask():
        assert (cached_folder(tmp_path / "made", build) / "a").read_text() == "a"
        done.append(True)

    done: list[bool] = []
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(done) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(UserError, match="HPT_RAY_CACHE"):
        load(write(tmp_path / "a.jsonl", [row(0)]))


MEASURE = r"""
import re, sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from hpt_ray.config.schema import DataConfig
from hpt_ray.data.dataset import load_prompts
from hpt_ray.data.template import Template
words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
template = Template(DataConfig(template="plain"), tokenizer)
limits = {"max_prompt_tokens": 9, "max_response_tokens": 99}
load = lambda path: load_prompts([path], template, **limits, demonstrations="required")
peak_mib = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
load(sys.argv[1])
before = peak_mib()
count = len(load(sys.argv[2]))
print(count, peak_mib() - before)
"""


def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    paths = []
    for count in (2100, 6300):
        rows = [row(i, target=" ".join(os.urandom(500).hex() for _ in range(10))) for i in range(count)]
        paths.append(tmp_path / f"{count}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), paths[-1])  # 21 and 63 MB of text, one row group each
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, timeout=60, check=True
    )
    count, grown_mib = result.stdout.split()
    assert int(count) == 6300
    assert float(grown_mib) < 20


def test_files_of_one_name_in_folders_of_one_name_keep_all_their_prompts(tmp_path):
    paths = []
    for year in ("2023", "2024", "2025"):
        folder = tmp_path / year / "data"
        folder.mkdir(parents=True)
        paths.append(write(folder / "train.jsonl", [{"prompt": f"{year}", "target": "6", "answer": "6"}]))
    prompts = load(*paths)
    assert len({prompt.id for prompt in prompts}) == 3
    assert prompts.dropped == {}
