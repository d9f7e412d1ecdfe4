"""Reading prompt files: what is accepted, what is refused and how, and how much memory it takes."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpt_ray.data.files import list_files
from hpt_ray.data.sources import open_rows, read_rows
from hpt_ray.errors import UserError


def row(**changes):
    return {
        "data_source": "",
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "2+2?"}],
        "target": [{"role": "assistant", "content": "It is 4."}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"split": "default", "index": 7},
    } | changes


def without(column):
    return {name: value for name, value in row().items() if name != column}


def write(path, rows, **options):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, **options)
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture(params=["parquet", "jsonl"])
def file(request, tmp_path):
    return tmp_path / f"prompts.{request.param}"


def test_a_row_may_have_arguments_for_the_chat_template(file):
    rows = [
        row(chat_template_kwargs={"enable_thinking": False, "date_string": None}),
        row(chat_template_kwargs=None),
    ]
    first, second = read_rows(write(file, rows))
    assert (first.template_kwargs, second.template_kwargs) == ({"enable_thinking": False}, {})
    assert "chat_template_kwargs" not in first.extra


def test_arguments_for_the_chat_template_may_be_written_as_text(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(chat_template_kwargs='{"enable_thinking": true}')])
    assert next(read_rows(file)).template_kwargs == {"enable_thinking": True}
    with pytest.raises(UserError, match="`chat_template_kwargs` should be an object, found str 'yes'"):
        next(read_rows(write(file, [row(chat_template_kwargs="yes")])))


def test_a_turn_without_weight_is_no_demonstration(file):
    """OpenAI's fine-tuning files mark with 0 what is only context."""
    asked = {"role": "user", "content": "2+2?", "weight": None}
    answered = {"role": "assistant", "content": "4"}
    turns = [[asked, {**answered, "weight": weight}] for weight in (0, 1, None)]
    found = [next(read_rows(write(file, [{"messages": each}]))).demonstration for each in turns]
    assert found == [None, "4", "4"]
    completion = {"prompt": "2+2?", "completion": [{**answered, "weight": 0}]}
    assert next(read_rows(write(file, [completion]))).demonstration is None


def test_a_published_row(file):
    (found,) = read_rows(write(file, [row()]))
    assert found.messages == row()["prompt"]
    assert found.demonstration == "It is 4."
    assert found.ground_truth == "4"
    assert found.data_source == ""
    assert found.extra == {
        "data_source": "",
        "ability": "math",
        "reward_model": row()["reward_model"],
        "split": "default",
        "index": 7,
    }
    assert found.published_id == "default/7"
    assert found.source == row()["prompt"]
    assert found.where == f"{file}, row 1"


@pytest.mark.parametrize(
    ("changes", "attribute", "expected"),
    [
        ({"prompt": "2+2?"}, "messages", [{"role": "user", "content": "2+2?"}]),
        ({"target": "It is 4."}, "demonstration", "It is 4."),
        ({"target": None}, "demonstration", None),
        ({"target": []}, "demonstration", None),
        ({"reward_model": {"ground_truth": 4}}, "ground_truth", 4),
        ({"reward_model": {"ground_truth": 0.5}}, "ground_truth", 0.5),
        ({"reward_model": {"ground_truth": ["4", "four"]}}, "ground_truth", ["4", "four"]),
        ({"reward_model": {"ground_truth": None}}, "ground_truth", None),
        ({"prompt": None}, "messages", []),
        ({"prompt": None}, "source", []),
        ({"reward_model": None}, "ground_truth", None),
        ({"data_source": None}, "data_source", ""),
        ({"extra_info": None}, "published_id", None),
        ({"extra_info": {"index": 0}}, "published_id", "0"),
    ],
)
def test_other_accepted_forms(file, changes, attribute, expected):
    (found,) = read_rows(write(file, [row(**changes)]))
    assert getattr(found, attribute) == expected


@pytest.mark.parametrize("column", ["target", "ability", "extra_info", "data_source"])
def test_columns_that_may_be_absent(file, column):
    assert len(list(read_rows(write(file, [without(column)])))) == 1


def test_missing_columns(file):
    with pytest.raises(UserError, match=r"of no known shape. Found: data_source \(text\), target \(list\)"):
        list(read_rows(write(file, [without("prompt")])))
    path = write(file, [without("reward_model")])
    assert next(read_rows(path)).ground_truth is None
    with pytest.raises(UserError, match="the column `answer` is missing"):
        open_rows(path, {}, needs_ground_truth=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": 5}, "`prompt` should be a text or a list of messages"),
        ({"prompt": ["2+2?"]}, "`prompt` should be a list of messages"),
        ({"prompt": [{"role": "human", "content": "2+2?"}]}, "`prompt.role` should be one of"),
        ({"prompt": [{"role": "user", "content": 4}]}, "`prompt.content` should be a text, found int 4"),
        ({"prompt": [{"role": "assistant", "content": "4"}]}, "ends with a user message"),
        ({"target": [{"role": "user", "content": "4"}]}, "`target` should be one single message"),
        ({"target": [{"role": "assistant", "content": "4"}] * 2}, "`target` should be one single message"),
        ({"target": 4}, "`target` should be a text or a list"),
        ({"reward_model": "4"}, "`reward_model` should be an object"),
        ({"reward_model": {"style": "rule"}}, "`reward_model.ground_truth` is missing; found style"),
        ({"reward_model": {"ground_truth": True}}, "`reward_model.ground_truth` should be"),
        ({"reward_model": {"ground_truth": {"a": 1}}}, "`reward_model.ground_truth` should be"),
        ({"data_source": 3}, "`data_source` should be a text"),
        ({"extra_info": "train"}, "`extra_info` should be an object"),
    ],
)
def test_wrong_type_names_file_row_and_column(file, changes, message):
    rows = [row(**changes)] * 3 if file.suffix == ".parquet" else [row(), row(), row(**changes)]
    number = 1 if file.suffix == ".parquet" else 3  # a parquet column has one type
    with pytest.raises(UserError) as error:
        list(read_rows(write(file, rows)))
    assert str(error.value).startswith(f"{file}, row {number}: ")
    assert message in str(error.value)


@pytest.mark.parametrize("ground_truth", [{"target": 24, "numbers": [4, 6]}, [{"in": "1", "out": "2"}], True])
def test_an_object_is_a_ground_truth_where_the_reward_function_is_the_users(tmp_path, ground_truth):
    file = write(tmp_path / "a.jsonl", [row(reward_model={"ground_truth": ground_truth})])
    assert next(open_rows(file, {}, objects=True)[1]).ground_truth == ground_truth


def test_rows_before_a_bad_one_are_read(tmp_path):
    rows = read_rows(write(tmp_path / "a.jsonl", [row(), row(prompt=1)]))
    assert next(rows).number == 1
    with pytest.raises(UserError, match="row 2"):
        next(rows)


@pytest.mark.parametrize("content", ["{not json", "[1, 2]"])
def test_lines_that_are_no_objects(tmp_path, content):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row()) + f"\n\n{content}\n")
    with pytest.raises(UserError, match="row 3"):
        list(read_rows(file))


def test_unreadable_files(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"broken\.parquet: not readable as parquet"):
        list(read_rows(broken))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(row()).encode() + b"\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"latin\.jsonl.*cannot be read"):
        list(read_rows(latin))


def test_paths(tmp_path):
    for name in ("b.parquet", "a.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    assert list_files(tmp_path) == [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    assert list_files(tmp_path / "b.parquet") == [tmp_path / "b.parquet"]
    with pytest.raises(UserError, match=r"no such file. Did you mean .*b\.parquet"):
        list_files(tmp_path / "bb.parquet")
    with pytest.raises(UserError, match="unknown kind"):
        list_files(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no file of rows"):
        list_files(tmp_path / "empty")


MEASURE = r"""
import re, sys
from pathlib import Path
from hpt_ray.data.sources import read_rows
peak_mib = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
sum(1 for _ in read_rows(Path(sys.argv[1])))
before = peak_mib()
count = sum(1 for _ in read_rows(Path(sys.argv[2])))
print(count, peak_mib() - before)
"""


def test_memory_does_not_grow_with_the_file_even_in_one_row_group(tmp_path):
    sizes = {"small": 2000, "large": 8000}  # 30 and 120 MB that do not compress away
    paths = []
    for name, count in sizes.items():
        rows = (row(target=os.urandom(7500).hex()) for _ in range(count))
        paths.append(write(tmp_path / f"{name}.parquet", list(rows)))
    assert paths[1].stat().st_size > 100e6
    assert pq.ParquetFile(paths[1]).num_row_groups == 1
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, timeout=60, check=True
    )
    count, grown_mib = result.stdout.split()
    assert int(count) == 8000
    assert float(grown_mib) < 25
