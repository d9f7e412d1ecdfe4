"""Rows of other programs: every shape is recognised, said, and read; what is not is refused with what to write."""

import json
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hpt_ray.config.schema import Config, DataConfig, RewardConfig
from hpt_ray.data.dataset import load_prompts
from hpt_ray.data.files import KINDS
from hpt_ray.data.shapes import COLUMNS, GROUND_TRUTH, WORKED
from hpt_ray.data.shapes import SHAPES as SHAPES_KNOWN
from hpt_ray.data.sources import open_rows
from hpt_ray.data.template import Template
from hpt_ray.driver.setup import asked_of
from hpt_ray.errors import UserError

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases" / "first_contact"
WORDS = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
WORDS.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # a token for every character
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=WORDS, eos_token="<eos>")
TOKENIZER.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
TEMPLATE = Template(DataConfig(), TOKENIZER)
Q, A, N = "What is 1 + 2?", "1 + 2 = 3, so \\boxed{3}.", "3"
USER, ANSWER = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": Q}, {"from": "gpt", "value": A}
MARKED = "1 and 2 are <<1+2=3>>3.\n#### 1,003"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, columns=None, **options):
    reading, rows = open_rows(path, columns or {}, **options)
    return str(reading), list(rows)


# row → how it is read: messages, demonstration, ground truth, and what is said
SHAPES = {
    "verl": (
        {"prompt": [USER], "target": [ANSWER], "reward_model": {"ground_truth": N}, "data_source": "d"},
        ([USER], A, N),
        "verl: prompt ← prompt, demonstration ← target, ground truth ← reward_model.ground_truth, "
        "data source ← data_source",
    ),
    "TRL texts": (
        {"prompt": Q, "completion": A, "answer": N},
        ([USER], A, N),
        "TRL prompt/completion: prompt ← prompt, demonstration ← completion, ground truth ← answer",
    ),
    "TRL messages": (
        {"prompt": [SYSTEM, USER], "completion": [ANSWER], "ground_truth": 3},
        ([SYSTEM, USER], A, 3),
        "TRL prompt/completion: prompt ← prompt, demonstration ← completion, ground truth ← ground_truth",
    ),
    "TRL without a ground truth": (
        {"prompt": Q, "completion": A, "label": True},
        ([USER], A, None),
        "TRL prompt/completion: prompt ← prompt, demonstration ← completion where label, no ground truth",
    ),
    "TRL's KTO, a bad one": (
        {"prompt": Q, "completion": A, "label": False},
        ([USER], None, None),
        "TRL prompt/completion: prompt ← prompt, demonstration ← completion where label, no ground truth",
    ),
    "TRL for GRPO": (
        {"prompt": [USER], "solution": "$3$"},
        ([USER], None, "$3$"),
        "prompt: prompt ← prompt, ground truth ← solution, no demonstration",
    ),
    "TRL preference": (
        {"prompt": Q, "chosen": [USER, ANSWER], "rejected": [USER, USER]},
        ([USER], A, None),
        "TRL preference: prompt ← prompt, demonstration ← chosen, no ground truth",
    ),
    "TRL preference, prompt inside": (
        {"chosen": [USER, ANSWER], "rejected": [USER]},
        ([USER], A, None),
        "TRL preference: prompt ← chosen, demonstration ← last assistant turn of chosen, no ground truth",
    ),
    "messages": (
        {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER], "answer": N},
        ([SYSTEM, USER, ANSWER, USER], A, N),
        "messages: prompt ← messages, demonstration ← last assistant turn of messages, ground truth ← answer",
    ),
    "messages without a last turn": (
        {"messages": [SYSTEM, USER], "solution": A},
        ([SYSTEM, USER], None, A),
        "messages: prompt ← messages, demonstration ← last assistant turn of messages, ground truth ← solution",
    ),
    "ShareGPT": (
        {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT], "answer": N},
        ([SYSTEM, USER], A, N),
        "ShareGPT: prompt ← conversations, demonstration ← last assistant turn of conversations, "
        "ground truth ← answer",
    ),
    "ShareGPT with a system column": (
        {"system": "Be brief.", "conversations": [HUMAN, GPT]},
        ([SYSTEM, USER], A, None),
        "ShareGPT: prompt ← conversations, demonstration ← last assistant turn of conversations, "
        "system message ← system, no ground truth",
    ),
    "question and answer": (
        {"Question": Q, "Answer": N},
        ([USER], None, N),
        "question: prompt ← Question, ground truth ← Answer, no demonstration",
    ),
    "GSM8K": (
        {"question": Q, "answer": MARKED},
        ([USER], "1 and 2 are <<1+2=3>>3.", "1003"),
        "question: prompt ← question, demonstration ← answer before ####, ground truth ← answer after ####",
    ),
    "problem and solution": (
        {"problem": Q, "solution": A, "answer": N},
        ([USER], A, N),
        "problem: prompt ← problem, demonstration ← solution, ground truth ← answer",
    ),
    "query and response": (
        {"query": Q, "response": A},
        ([USER], A, None),
        "query: prompt ← query, demonstration ← response, no ground truth",
    ),
    "Alpaca": (
        {"instruction": "What is it?", "input": "1 + 2", "output": A},
        ([{"role": "user", "content": "What is it?\n1 + 2"}], A, None),
        "Alpaca: prompt ← instruction and input, demonstration ← output, no ground truth",
    ),
    "Alpaca of LLaMA-Factory": (
        {"instruction": Q, "input": "", "output": A, "system": "Be brief.", "history": [[Q, A]]},
        ([SYSTEM, USER, ANSWER, USER], A, None),
        "Alpaca: prompt ← history and instruction and input, demonstration ← output, system message ← system, "
        "no ground truth",
    ),
    "OpenRLHF": (
        {"input": Q, "label": N},
        ([USER], None, N),
        "input: prompt ← input, ground truth ← label, no demonstration",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_recognised_and_read(tmp_path, name):
    row, expected, said = SHAPES[name]
    reading, (found,) = read(write(tmp_path / "a.jsonl", row | {"level": 5}))
    assert reading == said
    assert (found.messages, found.demonstration, found.ground_truth) == expected
    assert found.extra["level"] == 5


def test_the_columns_that_reach_a_reward_function(tmp_path):
    row = {"problem": Q, "solution": A, "answer": N, "extra_info": {"level": 5}, "when": None}
    _, (found,) = read(write(tmp_path / "a.jsonl", row))
    assert found.extra == {"problem": Q, "solution": A, "answer": N, "when": None, "level": 5}
    assert found.source == Q


def test_values_that_json_has_no_form_for(tmp_path, load):
    row = {"prompt": Q, "answer": N, "when": datetime(2026, 1, 2), "digest": b"abc", "share": Decimal("0.5")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (prompt,) = load(tmp_path / "a.parquet")
    further = {"when": "2026-01-02T00:00:00", "digest": "<3 bytes>", "share": "0.5"}
    assert prompt.extra == {"answer": N, **further}


def test_own_columns_by_name(tmp_path):
    row = {"aufgabe": Q, "loesung": {"de": {"text": A}}, "ergebnis": 3, "quelle": "d", "difficulty": 3}
    columns = {
        "prompt": "aufgabe",
        "target": "loesung.de.text",
        "answer": "ergebnis",
        "data_source": "quelle",
    }
    reading, (found,) = read(write(tmp_path / "a.jsonl", row), columns)
    assert reading == (
        "data.columns says: prompt ← aufgabe, demonstration ← loesung.de.text, ground truth ← ergebnis, "
        "data source ← quelle"
    )
    assert (found.messages, found.demonstration, found.ground_truth) == ([USER], A, 3)
    assert found.data_source == "d"
    assert found.extra == row


def test_one_named_column_leaves_the_others_recognised(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": Q, "completion": A, "gold": N})
    reading, _ = read(path, {"answer": "gold"})
    assert (
        reading == "TRL prompt/completion: prompt ← prompt, demonstration ← completion, ground truth ← gold"
    )


def test_a_conversation_under_another_name(tmp_path):
    _, (found,) = read(write(tmp_path / "a.jsonl", {"dialog": [SYSTEM, USER, ANSWER]}), {"prompt": "dialog"})
    assert (found.messages, found.demonstration) == ([SYSTEM, USER], A)


def test_an_unknown_shape_is_refused_with_the_line_to_write(tmp_path):
    row = {"id": "a/1", "aufgabe": Q, "loesung": A, "ergebnis": N, "difficulty": 3}
    with pytest.raises(UserError) as error:
        read(write(tmp_path / "a.jsonl", row))
    message = str(error.value)
    assert message.startswith(
        f"{tmp_path}/a.jsonl: its columns are of no known shape. Found: id (text), aufgabe"
    )
    assert "data.columns={prompt: aufgabe, target: loesung, answer: ergebnis}" in message


def test_the_line_to_write_sees_what_asks_and_what_is_worked_out(tmp_path):
    row = {"stufe": 5, "loesung": A * 40, "gebiet": "algebra", "ergebnis": N, "aufgabe": Q}
    with pytest.raises(UserError, match=r"{prompt: aufgabe, target: loesung, answer: ergebnis}"):
        read(write(tmp_path / "a.jsonl", row))


def test_the_line_to_write_goes_by_names_first_and_quotes_them(tmp_path):
    row = {"my solutions": A, "note": "n", "anwser": N, "the problem": Q}
    with pytest.raises(UserError, match=r'{prompt: "the problem", target: "my solutions", answer: anwser}'):
        read(write(tmp_path / "a.jsonl", row))


def test_a_named_column_that_is_not_there(tmp_path):
    path = write(tmp_path / "a.jsonl", {"aufgabe": Q, "ergebnis": N})
    with pytest.raises(
        UserError, match=r"`prompt: aufgaben`, .*There are: aufgabe, ergebnis. Did you mean aufgabe"
    ):
        read(path, {"prompt": "aufgaben"})
    with pytest.raises(UserError, match=r"`answer: reward_model.ground_truth`, and there is no such column"):
        read(path, {"prompt": "aufgabe", "answer": "reward_model.ground_truth"})
    held_out = write(tmp_path / "b.jsonl", {"question": Q, "answer": N})
    assert read(held_out, {"prompt": "aufgabe"}, held_out=True)[0].startswith("question: ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hello"}, "`messages` should be a list of messages"),
        ({"chosen": "Human: 1+2?", "rejected": "Human: 1+2?"}, "`chosen` should be a list of messages"),
        (
            {"messages": [USER, ANSWER | {"reasoning_content": "1, then 2 more"}]},
            "`messages.reasoning_content` should be absent: write it into the content",
        ),
        (
            {"messages": [USER, ANSWER | {"reasoning": "1, then 2 more"}]},
            "`messages.reasoning` should be absent",
        ),
        (
            {"messages": [{"role": "user", "text": Q}, ANSWER]},
            "`messages.content` should be a text, found dict",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "`messages.content` should be a text or",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}, USER]},
            "`messages.tool_calls` should be absent",
        ),
        (
            {"messages": [USER, {"role": "bot", "content": A}]},
            "`messages.role` should be one of system, user",
        ),
        ({"conversations": [{"from": "robot", "value": Q}]}, "`conversations.from` should be one of system"),
        ({"messages": [USER, ANSWER, SYSTEM]}, "`messages` should be turns of user and assistant"),
        (
            {"prompt": "[{'role': array(1)}]", "completion": A},
            "`prompt` should be a list of messages",
        ),
        ({"prompt": Q, "completion": 3}, "`completion` should be a text or a list of messages"),
        ({"instruction": Q, "output": A, "history": [Q]}, r"`history` should be a list of pairs"),
        ({"instruction": Q, "input": 3, "output": A}, "`input` should be a text, found int 3"),
        ({"question": Q, "answer": N, "data_source": 3}, "`data_source` should be a text"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_row(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, row 1: {message}")


def test_what_stands_in_objects_is_suggested_too(tmp_path):
    row = {"data_source": "d", "extra_info": {"question": Q, "answer": A}}  # verl's for SFT
    with pytest.raises(
        UserError, match=r"data\.columns={prompt: extra_info\.question, target: extra_info\.answer"
    ):
        read(write(tmp_path / "a.jsonl", row))
    row = {"context_messages": [USER], "label": N}
    with pytest.raises(UserError, match=r"data\.columns={prompt: COLUMN, answer: label}"):
        read(write(tmp_path / "a.jsonl", row))


def test_a_developer_is_the_system(tmp_path):
    turns = [SYSTEM | {"role": "developer"}, USER, ANSWER]
    (found,) = read(write(tmp_path / "a.jsonl", {"messages": turns}))[1]
    assert found.messages == [SYSTEM, USER]


@pytest.mark.parametrize("written", [json.dumps, str], ids=["JSON", "Python, as pandas writes CSV"])
def test_messages_may_be_written_as_text_and_contents_as_parts(tmp_path, written):
    parts = [{"type": "text", "text": Q[:4]}, {"type": "text", "text": Q[4:]}]
    turns = [{"role": "user", "content": parts}, ANSWER]
    rows = [{"messages": written(turns)}, {"messages": turns}]
    for row in rows:
        (found,) = read(write(tmp_path / "a.jsonl", row))[1]
        assert (found.messages, found.demonstration) == ([USER], A)
    (found,) = read(
        write(tmp_path / "b.jsonl", {"prompt": written(turns[:1]), "completion": written([ANSWER])})
    )[1]
    assert (found.messages, found.demonstration) == ([USER], A)


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("choices", {"question": "Which?", "choices": ["3", "4"], "answer": "A"}),
        ("A", {"question": "Which?", "A": "3", "B": "4", "answer": "A"}),
        ("option_a", {"question": "Which?", "option_a": "3", "option_b": "4", "answer": "A"}),
        ("opa", {"question": "Which?", "opa": "3", "opb": "4", "cop": 1}),
        ("passage", {"question": "How many?", "passage": "There were 3.", "answer": "3"}),
        ("images", {"problem": "<image>How long is x?", "images": ["a.png"], "answer": N}),
        ("tools", {"messages": [USER, ANSWER], "tools": [{"name": "add"}]}),
        ("tools", {"query": Q, "tools": '[{"name": "add"}]', "answers": "[]"}),
    ],
)
def test_what_belongs_to_the_prompt_and_is_not_in_its_column_is_noticed(tmp_path, part, row):
    path = write(tmp_path / "a.jsonl", row)
    prompt = next(iter(row))
    with pytest.raises(
        UserError, match=rf"`{part}` is no part of the prompt.*data\.columns={{prompt: {prompt}}}"
    ):
        read(path)
    assert len(read(path, {"prompt": prompt})[1]) == 1
    assert len(read(write(path, row | {part: None}))[1]) == 1


def test_objects_and_messages_as_other_programs_write_them(tmp_path):
    said = {
        "reward_model": json.dumps({"style": "rule", "ground_truth": N}),
        "extra_info": '{"index": 7, "level": 2}',
    }
    (found,) = read(write(tmp_path / "a.jsonl", {"prompt": [USER], **said}))[1]
    assert (found.ground_truth, found.published_id, found.extra["level"]) == (N, "7", 2)
    turns = [{"from": "human", "content": Q}, {"from": "gpt", "content": A}]
    (found,) = read(write(tmp_path / "b.jsonl", {"conversations": turns}))[1]
    assert (found.messages, found.demonstration) == ([USER], A)


def test_a_column_that_cannot_be_a_ground_truth_is_not_called_missing_alone(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": Q, "answer": True})
    with pytest.raises(UserError, match=r"`answer` holds bool values, which are none"):
        read(path, needs_ground_truth=True)


def test_a_ground_truth_is_asked_for_where_it_is_needed(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": Q, "completion": A})
    with pytest.raises(UserError, match=r"the column `answer` is missing.*data.columns={answer: completion}"):
        read(path, needs_ground_truth=True)
    assert len(read(path, {"answer": "completion"}, needs_ground_truth=True)[1]) == 1


def test_absent_values_are_no_error(tmp_path):
    rows = [
        {"messages": [USER, ANSWER], "answer": N},
        {"messages": None},
        {"messages": [ANSWER], "answer": None},
        {"messages": [USER, {"role": "assistant", "content": None}], "answer": float("nan")},
    ]
    _, found = read(write(tmp_path / "a.jsonl", *rows))
    assert [(row.messages, row.ground_truth) for row in found] == [
        ([USER], N),
        ([], None),
        ([], None),
        ([USER], None),
    ]


# -- the set ---------------------------------------------------------------------------------------


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path / "cache"))

    def load(*paths, max_response_tokens=500, demonstrations="optional", template=TEMPLATE, **options):
        return load_prompts(
            [str(path) for path in paths],
            template,
            max_prompt_tokens=500,
            max_response_tokens=max_response_tokens,
            demonstrations=demonstrations,
            **options,
        )

    return load


def test_a_set_says_how_it_was_read_also_from_the_cache(tmp_path, load):
    rows = {"prompt": Q, "completion": A, "answer": N}
    paths = [write(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    paths.append(write(tmp_path / "c.jsonl", {"question": Q, "answer": N}))
    for _ in range(2):
        assert load(*paths).read_as == [
            "a.jsonl and 1 more: read as TRL prompt/completion: prompt ← prompt, demonstration ← completion, "
            "ground truth ← answer",
            "c.jsonl: read as question: prompt ← question, ground truth ← answer, no demonstration",
        ]


def test_lengths_are_those_of_the_tokens(tmp_path, load):
    rows = [{"prompt": Q * i, "completion": A * i if i % 2 else None, "answer": N} for i in range(1, 6)]
    prompts = load(write(tmp_path / "a.jsonl", *rows))
    asked, worked = prompts.lengths()
    assert asked.tolist() == [len(prompt.token_ids) for prompt in prompts]
    assert worked.tolist() == [len(p.demonstration.token_ids) for p in prompts if p.demonstration]
    assert len(worked) == 3


def test_a_set_for_supervised_training_needs_no_ground_truth(tmp_path, load):
    path = write(tmp_path / "a.jsonl", {"prompt": Q, "completion": A})
    (prompt,) = load(path, demonstrations="required", needs_ground_truth=False)
    assert prompt.ground_truth is None
    assert prompt.id == "a:1"
    with pytest.raises(UserError, match="the column `answer` is missing"):
        load(path)


def test_demonstrations_that_never_close_the_thinking_of_the_prompt_do_not_train(tmp_path, load):
    texts = [A, f"Hm.</think>{A}", f"<think>Hm.</think>{A}"]
    path = write(
        tmp_path / "a.jsonl",
        *({"prompt": f"{Q}{i}", "completion": text, "answer": N} for i, text in enumerate(texts)),
    )
    thinking = Template(DataConfig(template="{prompt}<think>\n"), TOKENIZER)
    prompts = load(path, template=thinking)
    assert prompts.tally.demonstrations_left_out == {"demonstration_thinks_on": 1}
    assert [p.demonstration and p.demonstration.text for p in prompts] == [None, texts[1], texts[1]]
    assert {p.opening for p in prompts} == {"<think>\n"}
    path = write(tmp_path / "b.jsonl", {"prompt": Q, "completion": A, "answer": N})
    with pytest.raises(UserError, match=r"1 demonstration_thinks_on.*Write `</think>` between"):
        load(path, template=thinking, demonstrations="required")
    assert load(path).tally.demonstrations == 1


def test_a_ground_truth_that_is_an_object_reaches_the_users_function_as_it_is(tmp_path, load):
    truth = {"target": 24, "numbers": [4, 6], "note": None}
    rows = [{"prompt": Q, "ground_truth": truth}, {"prompt": Q, "reward_model": {"ground_truth": truth}}]
    for i, row in enumerate(rows):
        path = write(tmp_path / f"{i}.jsonl", row)
        (prompt,) = load(path, needs_ground_truth=False, objects=True)
        assert prompt.ground_truth == truth
        with pytest.raises(UserError, match=r"only reward functions of your own|holds object values"):
            load(path)


def test_a_set_in_which_nothing_is_left_says_what_was_read_and_what_to_write(tmp_path, load):
    path = write(tmp_path / "a.jsonl", {"question": Q, "answer": N})
    with pytest.raises(UserError) as error:
        load(path, demonstrations="required")
    assert str(error.value).startswith(f"{path}: no prompt is left (1 no_demonstration). ")
    assert "data.columns={target: COLUMN}. a.jsonl: read as question: prompt ← question" in str(error.value)


def test_an_unknown_role_is_refused(tmp_path, load):
    with pytest.raises(UserError, match=r"data.columns names `completion`; .* target \(the demonstration\)"):
        load(write(tmp_path / "a.jsonl", {"a": Q}), columns={"prompt": "a", "completion": "b"})


# -- a stranger's files ----------------------------------------------------------------------------

OWN = {"prompt": "aufgabe", "target": "loesung", "answer": "ergebnis"}
# file → rows, demonstrations, and what is asked of it
STRANGERS = {
    "trl_text.jsonl": (24, 24, {}),
    "trl_messages.jsonl": (24, 24, {}),
    "messages.jsonl": (24, 24, {}),
    "question_answer.jsonl": (24, 0, {}),
    "gsm8k_raw.jsonl": (24, 24, {}),
    "problem_solution.jsonl": (24, 24, {}),
    "alpaca.jsonl": (24, 24, {"needs_ground_truth": False}),
    "sharegpt.json": (24, 24, {}),
    "own_columns.jsonl": (24, 24, {"columns": OWN}),
    "no_demonstrations.jsonl": (24, 0, {}),
    "demonstrations_too_long.jsonl": (24, 0, {"max_response_tokens": 256}),
    "wrong_demonstrations.jsonl": (24, 24, {}),
    "sft_only.jsonl": (24, 24, {"needs_ground_truth": False}),
    "empty_and_null.jsonl": (2, 2, {}),
}
needs_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason="needs ../shared/cases/first_contact beside the checkout"
)


@needs_cases
@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_of_a_stranger(load, name):
    count, demonstrations, asked = STRANGERS[name]
    prompts = load(CASES / "data" / name, **asked)
    assert len(prompts) == count
    assert sum(prompt.demonstration is not None for prompt in prompts) == demonstrations
    assert {type(prompt.ground_truth) for prompt in prompts} == {
        str if asked.get("needs_ground_truth", True) else type(None)
    }
    if name == "empty_and_null.jsonl":
        assert prompts.dropped == {"empty_prompt": 1, "no_ground_truth": 1}


@needs_cases
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_columns.jsonl", r"data.columns=\{prompt: aufgabe, target: loesung, answer: ergebnis\}"),
        ("alpaca.jsonl", "the column `answer` is missing, the ground truth"),
        ("sft_only.jsonl", "the column `answer` is missing, the ground truth"),
        ("broken_line.jsonl", r"broken_line\.jsonl, row 2: not JSON"),
    ],
)
def test_a_file_of_a_stranger_that_is_refused(load, name, message):
    with pytest.raises(UserError, match=message):
        load(CASES / "data" / name)


@needs_cases
def test_every_file_of_the_cases_is_tried():
    assert {path.name for path in (CASES / "data").iterdir()} == {*STRANGERS, "broken_line.jsonl"}


# -- what is asked of a file -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "functions", "needed"),
    [
        ("switch", ["math"], True),
        ("rollouts", ["math"], True),
        ("demonstrations", ["math"], False),
        ("switch", ["python:FILE:grade"], False),
        ("switch", ["python:FILE:grade", "boxed"], True),
        (None, ["math"], True),
        (None, ["python:FILE:grade"], False),
    ],
)
def test_a_ground_truth_is_needed_where_something_compares_with_it(tmp_path, gate, functions, needed):
    file = tmp_path / "mine.py"
    file.write_text("def grade(response, ground_truth):\n    return 1.0\n")
    first, *others = [function.replace("FILE", str(file)) for function in functions]
    config = Config(reward=RewardConfig(function=first, functions={"other": others[0]} if others else {}))
    asked = asked_of(config, gate)
    assert asked["needs_ground_truth"] is needed
    assert asked.get("held_out", False) is (gate is None)
    assert asked["objects"] is any(name.startswith("python") for name in functions)


# -- the page --------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^(\{.*\})\n→ (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("row", "said"), EXAMPLES)
def test_an_example_of_the_page_is_read_as_it_says(tmp_path, row, said):
    path = write(tmp_path / "a.jsonl", json.loads(row))
    assert read(path)[0] == said


def test_the_page_shows_every_shape_and_kind_and_reason():
    assert {shape.name for shape in SHAPES_KNOWN} == {said.partition(":")[0] for _, said in EXAMPLES}
    for name in (*KINDS, *GROUND_TRUTH, *WORKED, *COLUMNS):
        assert f"`{name}`" in PAGE or f"`{name}:" in PAGE, name
