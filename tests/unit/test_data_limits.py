"""What is too large is found out before it costs memory or minutes, and what is nested too deeply is a sentence."""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hpt_ray.config.schema import DataConfig
from hpt_ray.data import files
from hpt_ray.data.files import read_raw
from hpt_ray.data.intake import Intake, Needs
from hpt_ray.data.template import Template
from hpt_ray.data.token_bound import exceeds, longest_token
from hpt_ray.errors import UserError


def rows_of(path: Path) -> int:
    return sum(1 for _ in read_raw(path))


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, store_schema: bool
) -> None:
    file = tmp_path / "bomb.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 15_000, pa.int32()), pa.array(["x" * 10**6]))
    table = pa.table({"prompt": texts, "answer": ["1"] * 15_000})
    pq.write_table(table, file, compression="zstd", store_schema=store_schema)
    assert file.stat().st_size < 3000
    with pytest.raises(UserError, match=r"bomb\.parquet: [\d,]+ bytes unpack to more than 1,073,741,824"):
        rows_of(file)


def test_rows_that_are_too_large_are_refused_by_what_the_file_says_of_itself(tmp_path: Path) -> None:
    file = tmp_path / "wide.parquet"
    lists = pa.ListArray.from_arrays(pa.array([0, 2 * 10**7], pa.int32()), pa.nulls(2 * 10**7, pa.int8()))
    pq.write_table(pa.table({"prompt": ["?"], "extra": lists}), file)
    assert file.stat().st_size < 10_000
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"row group 0 unpacks to .* 20,000,000 values in 1 rows"):
        rows_of(file)
    assert time.monotonic() - begin < 5


def test_few_rows_are_read_at_a_time_where_they_may_be_large(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["x" * 200_000_000, "y"], "answer": ["1", "2"]}), file)
    with pq.ParquetFile(file) as opened:
        assert files._rows_that_fit(file, opened.metadata) == 10
    assert rows_of(file) == 2


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 10**6)
    for name in ("rows.jsonl.gz", "rows.csv.gz"):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write("x" * 10**7)
        with pytest.raises(UserError, match=r"one line has more than 1,000,000 characters"):
            rows_of(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "why"), [("[" * 100_000, "nested too deeply"), ("9" * 5000, "Exceeds the limit")]
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_what_json_cannot_hold_is_a_sentence(tmp_path: Path, name: str, value: str, why: str) -> None:
    (tmp_path / name).write_text('{"prompt": "?", "answer": ' + value + "}\n")
    with pytest.raises(UserError, match=rf"{name}.*{why}"):
        rows_of(tmp_path / name)


# -- texts that are too long for certain -------------------------------------------------------------


def bpe(**options) -> PreTrainedTokenizerFast:
    """Bytes, and a few merges that make tokens of up to four characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("Ġ", "a")]
    tokens = dict.fromkeys([*alphabet, *(left + right for left, right in merges), "<end>"])
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def test_no_text_has_fewer_tokens_than_is_said() -> None:
    tokenizer = bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    longest = longest_token(tokenizer)
    assert longest == 4 * len("<end>")
    pick = random.Random(1)
    for alphabet in ("ab cd", "abcd", " \n\t", "e\u0301", "\u1100\u1161\u11a8", "🙂é\ud7a3"):
        for length in (1, 50, 2000):
            text = "".join(pick.choice(alphabet) for _ in range(length))
            num_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            assert not exceeds(text, num_tokens * longest)
    assert exceeds("abcd " * 1000, 3999)
    assert not exceeds("abcd " * 1000, 4000)


def test_where_a_token_may_stand_for_any_text_nothing_is_said() -> None:
    assert longest_token(bpe(unk_token="<end>", fuse_unk=True)) is None
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), unk_token="?"
    )
    assert longest_token(words) is None
    dropping = bpe()
    dropping.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel()]
    )
    assert longest_token(dropping) is None


def test_a_text_of_200_mb_is_dropped_without_being_tokenised(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    long = "ab cd " * 35_000_000
    with file.open("w") as lines:
        for row in (
            {"prompt": long, "target": "1"},
            {"prompt": "ab", "target": long},
            {"prompt": "ab", "target": "cd"},
        ):
            lines.write(json.dumps({**row, "ground_truth": "1"}) + "\n")
    template = Template(DataConfig(template="plain"), bpe())
    intake = Intake(template, 100, 100, Needs("required"))
    begin = time.monotonic()
    kept = sum(batch.num_rows for batch in intake.record_batches([file]))
    assert time.monotonic() - begin < 60  # reading takes most of it
    assert kept == 1
    assert intake.tally.dropped == {"prompt_too_long": 1, "demonstration_too_long": 1}
