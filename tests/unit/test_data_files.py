"""Every kind of file gives the same rows, folders give the files that are meant, and a broken file is named."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from hpt_ray.data.files import KINDS, kind_of, list_files, read_raw
from hpt_ray.data.sources import read_rows
from hpt_ray.errors import UserError

ROWS = [{"question": f'{i}+1?\n"so", it\'s', "answer": f"{i + 1}", "level": None} for i in range(300)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_csv(path, rows=ROWS, delimiter=",", start=""):
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(start)
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_stream(path, rows=ROWS):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def write_zipped(path):
    with pa.output_stream(str(path), compression="detect") as file:
        file.write(lines(ROWS).encode())


def write_zipped_csv(path):
    write_csv(path)
    content = path.read_bytes()
    with pa.output_stream(str(path), compression="detect") as file:
        file.write(content)


WRITERS = {
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.jsonl": lambda path: path.write_text(lines(ROWS)),
    "bom.jsonl": lambda path: path.write_text("\ufeff" + lines(ROWS)),
    "a.jsonl.gz": write_zipped,
    "a.jsonl.zst": write_zipped,
    "a.csv.zst": write_zipped_csv,
    "a.ndjson": lambda path: path.write_text(lines(ROWS)),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "inside.json": lambda path: path.write_text(json.dumps({"version": 1, "tags": ["a"], "data": ROWS})),
    "lines.json": lambda path: path.write_text(lines(ROWS)),
    "a.csv": write_csv,
    "excel.csv": lambda path: write_csv(path, delimiter=";", start="\ufeff"),
    "a.tsv": lambda path: write_csv(path, delimiter="\t"),
    "stream.arrow": write_stream,
    "a.feather": lambda path: pa.feather.write_feather(pa.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_kind_of_file(tmp_path, name):
    WRITERS[name](tmp_path / name)
    (path,) = list_files(tmp_path / name)
    found = list(read_raw(path))
    empty = "" if kind_of(path) in (".csv", ".tsv") else None  # its cells are texts
    assert found == [(i, row | {"level": empty}) for i, row in enumerate(ROWS, start=1)]
    assert [row.ground_truth for row in read_rows(path)] == [row["answer"] for row in ROWS]


def test_every_kind_is_tried():
    assert {kind_of(Path(name)) for name in WRITERS} == set(KINDS)


def test_a_long_cell(tmp_path):
    write_csv(tmp_path / "a.csv", [{"prompt": "q", "completion": "x" * 1_000_000}])
    ((_, row),) = read_raw(tmp_path / "a.csv")
    assert len(row["completion"]) == 1_000_000


# -- folders ---------------------------------------------------------------------------------------


def save(folder, shards):
    """A folder as `datasets` saves it, with the shards in this order."""
    folder.mkdir(parents=True)
    for name, rows in shards.items():
        write_stream(folder / name, rows)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in shards]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_folder_saved_by_datasets(tmp_path):
    shards = {"data-00000-of-00002.arrow": ROWS[:200], "data-00001-of-00002.arrow": ROWS[200:]}
    folder = save(tmp_path / "saved", shards)
    write_stream(folder / "cache-1234.arrow", ROWS[:3])  # what `map` leaves behind
    assert [row for file in list_files(folder) for _, row in read_raw(file)] == ROWS


def test_a_folder_of_splits_saved_by_datasets(tmp_path):
    for name in ("train", "test"):
        save(tmp_path / name, {"data-00000-of-00001.arrow": ROWS})
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert [file.parent.name for file in list_files(tmp_path)] == ["train"]
    assert [file.parent.name for file in list_files(tmp_path, split="test")] == ["test"]
    with pytest.raises(UserError, match=r"holds the splits train, test\. Name"):
        list_files(tmp_path, split="validation")


def test_a_folder_of_files(tmp_path):
    for name in ("b.csv", "a.jsonl", "dataset_info.json", "README.md"):
        (tmp_path / name).touch()
    assert [file.name for file in list_files(tmp_path)] == ["a.jsonl", "b.csv"]


@pytest.mark.parametrize("inside", ["", "data"])
def test_a_folder_of_files_that_are_named_after_splits(tmp_path, inside):
    folder = tmp_path / "set"
    (folder / inside).mkdir(parents=True)
    for name in ("train-00000.parquet", "train-00001.parquet", "test-00000.parquet"):
        (folder / inside / name).touch()
    assert [file.name for file in list_files(folder)] == ["train-00000.parquet", "train-00001.parquet"]
    assert [file.name for file in list_files(folder, split="test")] == ["test-00000.parquet"]
    (folder / inside / "more.parquet").touch()  # of which nobody knows whether it is tested on
    with pytest.raises(
        UserError, match=r"more\.parquet is named after no split, and others are after test, train"
    ):
        list_files(folder)


def test_a_pattern_names_files_and_no_test_file_among_them(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/train-0.parquet", "a/train-1.parquet", "a/test-0.parquet", "a/train.txt"):
        (tmp_path / name).touch()
    named = [tmp_path / "a" / "train-0.parquet", tmp_path / "a" / "train-1.parquet"]
    assert list_files(f"{tmp_path}/a/*.parquet") == named
    assert list_files(f"{tmp_path}/*/train*") == named
    with pytest.raises(UserError, match=r"no such file"):
        list_files(f"{tmp_path}/a/*.csv")
    with pytest.raises(UserError, match=r"holds no file of rows.*Name one of those in it that do: a\."):
        list_files(tmp_path)


def test_a_test_file_is_not_trained_on_wherever_its_name_says_so(tmp_path):
    for name in ("gsm8k_train.jsonl", "gsm8k-test.jsonl", "gsm8k_train_2.jsonl"):
        (tmp_path / name).touch()
    assert [file.name for file in list_files(tmp_path)] == ["gsm8k_train.jsonl", "gsm8k_train_2.jsonl"]
    assert [file.name for file in list_files(tmp_path, split="test")] == ["gsm8k-test.jsonl"]
    (tmp_path / "gsm8k-test.jsonl").unlink()
    (tmp_path / "more.jsonl").touch()
    assert len(list_files(tmp_path)) == 3


# -- what cannot be read ---------------------------------------------------------------------------


def test_cells_may_follow_a_blank_and_hold_the_separator(tmp_path):
    (tmp_path / "a.csv").write_text('"a; b, c"; d\n"1; 2"; "say ""3"""\n')
    assert list(read_raw(tmp_path / "a.csv")) == [(1, {"a; b, c": "1; 2", "d": 'say "3"'})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl, row 2: not JSON"),
        (
            "a.jsonl",
            '{"a": 1}\n\n7\n',
            r"a\.jsonl, row 3: should be an object with the row's columns, found int",
        ),
        ("a.json", '[{"a": 1}', r"a\.json: not readable as json"),
        ("a.json", '{"a": 1}\n{"a": \n', r"a\.json, row 2: not JSON"),
        (
            "a.json",
            '{"a": [{}], "b": [{}]}',
            r"a\.json: should hold a list of objects, one per row, found dict",
        ),
        ("a.json", '[{"a": 1}, 7]', r"a\.json, row 2: should be an object"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a\.csv, row 2: more cells than the first line has columns"),
        ("a.csv", "a,b\n1,2\n1\n", r"a\.csv, row 2: fewer cells than the first line has columns"),
        ("a.csv", "a,b,a\n1,2,3\n", r"a\.csv: the first line has a more than once"),
        ("a.csv", 'a,b\n1,"2\n', r"a\.csv, after row 0: cannot be read"),
        ("a.csv", b"a\n\xff\n", r"a\.csv, after row 0: cannot be read"),
        ("a.arrow", "no arrow", r"a\.arrow: not readable as arrow"),
        ("a.arrow", "", r"a\.arrow: not readable as arrow"),
        ("a.feather", "ARROW1 and no more", r"a\.feather: not readable as feather"),
        ("a.parquet", "", r"a\.parquet: not readable as parquet"),
        ("a.jsonl.gz", "not zipped", r"a\.jsonl\.gz, after row 0: cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        list(read_raw(path))


def test_a_name_of_the_hub_is_told_how_to_get_the_files():
    with pytest.raises(UserError, match=r"no such file.*hf download openai/gsm8k --repo-type dataset"):
        list_files("openai/gsm8k")


@pytest.mark.parametrize("name", ["a.txt", "a.parquet.gz", "a", "a.gz"])
def test_other_kinds_are_refused_with_those_that_are_known(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"unknown kind of file. Rows come as \.parquet, \.jsonl"):
        list_files(tmp_path / name)
