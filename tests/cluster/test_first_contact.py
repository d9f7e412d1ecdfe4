"""Files and reward functions as strangers bring them, trained for real: each from an empty folder.

`../shared/cases/first_contact` is read where it is there; its `expected.json` says which of them train.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from command import LIMIT_S, ROOT, run_main
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CASES = ROOT.parent / "shared" / "cases" / "first_contact"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.timeout(2 * LIMIT_S),
    pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases/first_contact beside the checkout"),
]

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OWN = "data.columns={prompt: aufgabe, target: loesung, answer: ergebnis}"
SMALL = [
    *("prompts_per_step=8", "group_size=4", "max_tokens_per_micro_batch=1024", "run.steps=2"),
    *("data.max_prompt_tokens=128", "data.max_response_tokens=64", "reward.require_finished=false"),
    *("rollout.kv_cache_gib=0.125", "rollout.num_cpus=0.5", "learner.num_cpus=0.5", "cluster.address=local"),
]
# file, algorithm, reward function, further words
TRAINS = [
    ("trl_text.jsonl", "hpt", "boxed", []),
    ("trl_messages.jsonl", "hpt", "boxed", []),
    ("messages.jsonl", "hpt", "boxed", []),
    ("question_answer.jsonl", "grpo", "boxed", []),
    ("gsm8k_raw.jsonl", "hpt", "gsm8k", []),
    ("problem_solution.jsonl", "luffy", "boxed", []),
    ("alpaca.jsonl", "sft", "boxed", []),
    ("sharegpt.json", "hpt", "boxed", []),
    ("own_columns.jsonl", "hpt", "uses_column.py:compute_score", [OWN]),
    ("no_demonstrations.jsonl", "grpo", "boxed", []),
    ("wrong_demonstrations.jsonl", "hpt", "boxed", []),
    ("sft_only.jsonl", "sft", "boxed", []),
    ("trl_text.jsonl", "grpo", "verl_style.py:compute_score", []),
    ("trl_text.jsonl", "grpo", "verl_dict.py:compute_score", []),
    ("trl_text.jsonl", "grpo", "trl_style.py:reward", []),
    ("trl_text.jsonl", "grpo", "trl_prompts.py:reward", []),
    ("trl_text.jsonl", "grpo", "async_style.py:grade", []),
    ("trl_text.jsonl", "grpo", "raises_sometimes.py:grade", ["reward.max_failure_share=1"]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained chat model: a token for every byte, and Qwen's way to write a turn."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT, eos_token="<|im_end|>"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "qwen2", **sizes, num_key_value_heads=1, max_position_embeddings=512, vocab_size=258, eos_token_id=257
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "algorithm", "function", "more"),
    TRAINS,
    ids=[f"{file}-{algorithm}-{function.partition(':')[0]}" for file, algorithm, function, _ in TRAINS],
)
def test_trains(model, tmp_path, file, algorithm, function, more):
    (tmp_path / "empty.yaml").write_text("{}")
    own = f"python:{CASES / 'rewards' / function}" if ":" in function else function
    words = [
        *("--config", "empty.yaml", f"model.path={model}", f"data.train=[{CASES / 'data' / file}]"),
        *(f"algorithm.name={algorithm}", f"reward.function={own}", *SMALL, *more),
    ]
    ended = run_main(words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    run = (tmp_path / "runs" / "latest").resolve()
    lines = [*map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())]
    assert [line["step"] for line in lines] == [1, 2]
    if (
        algorithm == "grpo"
    ):  # an untrained model solves nothing: where rewards are equal, GRPO has no gradient
        assert all(math.isfinite(line["reward/mean"]) for line in lines)
    else:
        assert all(line["loss/total"] and line["optim/grad_norm"] for line in lines), lines
    (card,) = json.loads((run / "data_card.json").read_text(encoding="utf-8"))["training"]
    assert (card["kept"], card["demonstrations"]) == (
        24,
        None if algorithm == "grpo" else 24,
    )  # GRPO asks for none
    shares = [line["reward/failure_share"] for line in lines if "reward/failure_share" in line]
    if function.startswith("raises_sometimes"):
        assert max(shares) > 0
        assert "rewards failed" in ended.stdout
    else:
        assert not any(shares)
    if function.startswith("verl_dict"):
        assert all("reward/metric/format" in line for line in lines)
    if file.startswith("wrong"):
        assert "8 of 24" in " ".join((ended.stdout + ended.stderr).split())


def test_every_file_and_function_that_trains_is_here():
    expected = json.loads((CASES / "expected.json").read_text(encoding="utf-8"))
    refused = {
        "demonstrations_too_long.jsonl",
        "broken_line.jsonl",
        "empty_and_null.jsonl",
    }  # two rows are no set
    assert {file for file, *_ in TRAINS} == {*expected["data"]} - refused
    assert {function for _, _, function, _ in TRAINS if ":" in function} == {
        name for name, says in expected["rewards"].items() if says.startswith(("trains", "failures counted"))
    }
