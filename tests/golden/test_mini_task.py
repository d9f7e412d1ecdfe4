"""The small task is what its specification says, on every machine and every time."""

import hashlib
import random
import re

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_ray.data import mini
from hpt_ray.data.mini.corpus import draw_base_corpus, draw_splits, faulty_solution
from hpt_ray.data.mini.families import PROBLEM_MAKERS, Problem, solution
from hpt_ray.data.mini.files import FILES
from hpt_ray.data.mini.model import create_model, model_config
from hpt_ray.data.mini.sizes import SIZES
from hpt_ray.data.mini.tokenizer import VOCABULARY, build_tokenizer
from hpt_ray.errors import UserError


@pytest.fixture(scope="module")
def splits():
    return draw_splits()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mini")
    mini.write_mini(path)
    return path


def rows_of(folder, name):
    return pq.read_table(folder / FILES[name]).to_pylist()


@pytest.mark.parametrize(
    ("problem", "step", "terse"),
    [
        (Problem("chain", "", 58, (("-", 2), ("+", 9))), "58-2=56. 56+9=65.", "58-2+9=65."),
        (
            Problem("chain", "", 10, (("+", 5), ("*", 2), ("-", 3))),
            "10+5=15. 15*2=30. 30-3=27.",
            "10+5=15. 15*2=30. 30-3=27.",
        ),
        (
            Problem("chain", "", 10, (("*", 2), ("-", 3), ("+", 4))),
            "10*2=20. 20-3=17. 17+4=21.",
            "10*2=20. 20-3+4=21.",
        ),
        (Problem("word", "", 60, (("-", 9), ("+", 5))), "60-9=51. 51+5=56.", "60-9+5=56."),
        (
            Problem("list", "", 4, (("+", 6), ("+", 3), ("+", 3))),
            "4+6=10. 10+3=13. 13+3=16.",
            "4+6+3=13. 13+3=16.",
        ),
        (Problem("expr", "", 4, (("*", 3), ("-", 6))), "4*3=12. 12-6=6.", "4*3-6=6."),
        (Problem("eval", "", 7, (("*", 9), ("+", 3))), "7*9=63. 63+3=66.", "7*9=63. 63+3=66."),
        (Problem("geo", "", 23, (("+", 5), ("*", 2))), "23+5=28. 28*2=56.", "23+5=28. 28*2=56."),
    ],
)
def test_solutions_in_both_styles(problem, step, terse):
    box = f" \\boxed{{{problem.answer}}}"
    assert solution(problem, "step") == step + box
    assert solution(problem, "terse") == terse + box


PATTERNS = {
    "chain": r"Start with \d+\.( (Add \d|Subtract \d|Double it)\.){1,3} What is the result\?",
    "word": r"(\w+) has \d+ (\w+)\.( S?[Hh]e (gives away \d|buys \d more)\.){1,2} "
    r"How many \2 does \1 have now\?",
    "expr": r"Compute \d\*\d[+-]\d\.",
    "list": r"Find the sum of \d(, \d){1,3}\.",
    "eval": r"If x=\d, find \dx[+-]\d\.",
    "geo": r"A rectangle has length \d+ and width \d\. Find its perimeter\.",
    "boxes": r"(\w+) has \d boxes with \d (\w+) in each\. S?[Hh]e (gives away \d|buys \d more)\. "
    r"How many \2 does \1 have now\?",
    "lose": r"(\w+) has \d+ (\w+)\.( S?[Hh]e (loses \d \2|gets \d more \2)\.){1,2} How many \2 are left\?",
    "mix": r"(\w+) has \d+ (\w+)\.(?=.*(gives|buys))(?=.*(loses|gets))"
    r"( S?[Hh]e (gives away \d|buys \d more|loses \d \2|gets \d more \2)\.){2} "
    r"How many \2 (does \1 have now|are left)\?",
    "stock": r"(\w+) has \d boxes with \d (\w+) in each\. S?[Hh]e (loses \d \2|gets \d more \2)\. "
    r"How many \2 are left\?",
}


@pytest.mark.parametrize("family", PATTERNS)
def test_families(family):
    rng = random.Random(1)
    problems = [PROBLEM_MAKERS[family](rng) for _ in range(4000)]
    for problem in problems:
        assert re.fullmatch(PATTERNS[family], problem.prompt), problem.prompt
        values = [int(value) for value in re.findall(r"=(\d+)\.", solution(problem, "step"))]
        assert values[-1] == problem.answer
        assert all(1 <= value <= 99 for value in values)
        for line in re.findall(r"(\S+)=(\d+)\.", solution(problem, "terse")):
            assert eval(line[0]) == int(line[1])  # digits and + - * only: the pattern above
    expected = {"expr": 1005, "eval": 1005, "geo": 303}
    if family in expected:
        distinct = {PROBLEM_MAKERS[family](rng).prompt for _ in range(30_000)}
        assert len(distinct) == expected[family]


def test_splits_share_no_prompt_with_what_is_held_out(splits):
    prompts = {name: [problem.prompt for problem in problems] for name, problems in splits.items()}
    assert {name: len(texts) for name, texts in prompts.items()} == {
        "validation": 48 * 8,
        "test": 100 * 8,
        "recombined": 100 * 2,
        "train": 600,
        "train-large": 4000,
    }
    for name in ("validation", "test", "train"):
        assert len(set(prompts[name])) == len(prompts[name])
    validation, test = set(prompts["validation"]), set(prompts["test"])
    assert not validation & test
    for name in ("train", "train-large"):
        assert not (validation | test) & set(prompts[name])
    repeated = [p.family for p in splits["train-large"] if prompts["train-large"].count(p.prompt) > 1]
    assert set(repeated) == {"geo"}


def test_base_corpus_has_the_two_faults_at_their_rates(splits):
    known = {problem.prompt for name in ("validation", "test", "train") for problem in splits[name]}
    documents = list(draw_base_corpus(known))
    assert len(documents) == 30_000
    assert {problem.family for problem, _ in documents} == {"chain", "word", "list", "expr", "boxes", "lose"}
    assert not known & {problem.prompt for problem, _ in documents}
    lines = [re.findall(r"(\S+?)=(\d+)\.", text) for _, text in documents]
    slipped = [eval(terms) != int(result) for document in lines for terms, result in document]
    assert sum(slipped) / len(slipped) == pytest.approx(0.12, abs=0.005)
    unboxed = sum(bool(re.search(r"So the answer is \d+\.$", text)) for _, text in documents)
    boxed = sum(bool(re.search(r"\\boxed\{\d+\}$", text)) for _, text in documents)
    assert unboxed + boxed == 30_000
    assert unboxed / 30_000 == pytest.approx(0.6, abs=0.01)


def test_lines_after_a_slip_follow_it():
    problem = Problem("chain", "", 20, (("+", 5), ("-", 2), ("+", 9)))
    for seed in range(200):
        text = faulty_solution(problem, random.Random(seed))
        lines = re.findall(r"(\d+)[+-]\d=(\d+)\.", text)
        assert [start for start, _ in lines] == ["20", *(result for _, result in lines[:-1])]
        assert text.endswith((f"\\boxed{{{lines[-1][1]}}}", f"So the answer is {lines[-1][1]}."))


def test_tokenizer_has_82_entries_and_the_ids_of_the_specification(tokenizer):
    assert len(tokenizer) == 82 == len(set(VOCABULARY))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    text = "If x=9, find 7x+3."
    assert tokenizer.tokenize(text) == ["If", "x", "=", "9", ",", "find", "7", "x", "+", "3", "."]
    assert tokenizer(text)["input_ids"] == [57, 20, 16, 12, 18, 58, 10, 20, 13, 6, 17]
    assert tokenizer("\\boxed{56}")["input_ids"] == [21, 8, 9, 22]
    with pytest.raises(Exception, match="UNK"):
        tokenizer("Divide 8 apples among friends.")


def test_every_text_of_the_task_comes_back_from_its_tokens(folder, tokenizer):
    longest_prompt = longest_response = longest_recombined = 0
    for name in FILES:
        if name == "tokenizer":
            continue
        for row in rows_of(folder, name)[:1000]:
            prompt, answer = row["prompt"][0]["content"], row["target"][0]["content"]
            prompt_ids, answer_ids = tokenizer([prompt, answer])["input_ids"]
            assert tokenizer.decode(prompt_ids) == prompt
            assert tokenizer.decode(answer_ids) == answer
            if name in ("test/mix", "test/stock"):
                longest_recombined = max(longest_recombined, 1 + len(prompt_ids))
            elif name != "base":
                longest_prompt = max(longest_prompt, 1 + len(prompt_ids))
                longest_response = max(longest_response, len(answer_ids) + 1)
    assert (longest_prompt, longest_response) == (25, 29)
    assert longest_recombined == 26


def test_files_hold_the_schema_and_right_answers(folder):
    for name, count in {
        "train": 600,
        "train-step-4000": 4000,
        "validation/lose": 48,
        "test/geo": 100,
    }.items():
        rows = rows_of(folder, name)
        assert len(rows) == count
        assert [row["extra_info"]["index"] for row in rows] == list(range(count))
        for row in rows:
            assert set(row) == {"data_source", "prompt", "target", "ability", "reward_model", "extra_info"}
            box = f"\\boxed{{{row['reward_model']['ground_truth']}}}"
            assert row["target"][0]["content"].endswith(box)
    assert {row["data_source"] for row in rows_of(folder, "test/geo")} == {"mini/geo"}
    assert len(rows_of(folder, "base")) == 30_000
    assert [row["prompt"] for row in rows_of(folder, "train")] == [
        row["prompt"] for row in rows_of(folder, "train-step")
    ]


def test_generated_bytes_are_the_same_every_time(folder, tmp_path):
    mini.write_mini(tmp_path)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path


def test_generated_texts_are_those_of_this_version(folder):
    """Whoever changes these hashes raises `VERSION` in mini/files.py."""
    digests = {}
    for name in ("train", "train-step-4000", "validation/chain", "test/boxes", "test/mix", "base"):
        texts = [row["prompt"][0]["content"] + row["target"][0]["content"] for row in rows_of(folder, name)]
        digests[name] = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    assert digests == {
        "train": "22cfc0e395cae2d5",
        "train-step-4000": "f3c98488f9e2635e",
        "validation/chain": "eb5ca5c4c0a5e2b8",
        "test/boxes": "01589990b56e7da1",
        "test/mix": "3c2cf2fefe5287f7",
        "base": "04518a6089711187",
    }


def test_names_resolve_to_files_made_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path))
    path = mini.resolve("mini:validation/chain")
    assert path.is_file()
    assert path.is_relative_to(tmp_path)
    before = path.stat().st_mtime_ns
    for name in FILES:
        assert mini.resolve(f"mini:{name}").exists()
    assert path.stat().st_mtime_ns == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["mini-v2"]
    assert len(AutoTokenizer.from_pretrained(mini.resolve("mini:tokenizer"))) == 82
    with pytest.raises(UserError, match=r"Did you mean mini:validation/chain\?"):
        mini.resolve("mini:validation/chains")


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize(
    ("size", "millions"), [("t", 0.10), ("xs", 0.19), ("w", 0.38), ("s", 0.75), ("m", 2.98)]
)
def test_model_sizes(size, millions, architecture):
    model = create_model(size, seed=0, architecture=architecture)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.011)
    assert model.get_input_embeddings().weight.shape == (82, SIZES[size].hidden)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    config = model.config
    assert config.hidden_size // config.num_attention_heads == 32
    assert config.max_position_embeddings >= 128
    assert (model.model.layers[0].self_attn.q_proj.bias is not None) == (architecture == "qwen2")


def test_initialisation_is_that_of_the_specification_and_seeded():
    model, same, other = create_model("m", 3), create_model("m", 3), create_model("m", 4)
    layer = model.model.layers[0]
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(256**-0.5, rel=0.03)
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.03)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(704**-0.5 / 2, rel=0.03)
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(256**-0.5 / 2, rel=0.03)
    assert not layer.self_attn.q_proj.bias.any()
    assert (layer.input_layernorm.weight == 1).all()
    pairs = list(zip(model.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_saved_model_loads_with_the_same_logits(architecture, tmp_path):
    model = create_model("t", 0, architecture).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 53, 7, 15, 6, 14, 9, 17]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert loaded.config.vocab_size == model_config("t", architecture).vocab_size == 82
