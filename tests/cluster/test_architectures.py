"""The families of models: each trains, with sampler and learner in agreement, or is refused in one sentence.

A tiny random model of every family runs two steps of GRPO; the exported folder is then loaded by transformers alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import TINY, run_main, write_reward_function
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.main import main

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name → model_type, and what is particular to it
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "llama": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral, window": ("mistral", {"sliding_window": 16, "head_dim": 32}),
    "gemma2": (
        "gemma2",
        {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "phi3": ("phi3", {"original_max_position_embeddings": 256}),
    "olmo2": ("olmo2", {}),
    "glm4": ("glm4", {"head_dim": 32}),
    "smollm3": ("smollm3", {}),
}
# What no refusal foresees: the first step finds that vLLM and transformers compute different models.
STOPPED: dict[str, tuple[str, dict[str, object]]] = {"gpt_neox": ("gpt_neox", {}), "gpt2": ("gpt2", GPT2)}
# name → the same, and the words of the refusal
REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "qwen3_moe": (
        "qwen3_moe",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        "is a mixture of experts",
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4}, "is a mixture of experts"),
    "granite": ("granite", {"logits_scaling": 8.0}, "scales its logits"),
}
QUICK = ("gemma2",)  # windows and soft-capping: of the others, `make test-all` runs each


def write_model(folder: Path, kind: str, particular: dict[str, object]) -> None:
    tokenizer = build_tokenizer()
    sizes = {} if kind == "gpt2" else SIZES
    config = AutoConfig.for_model(kind, **{**sizes, **particular, "vocab_size": len(tokenizer)})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]  # without it vLLM guesses, and may embed
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1).save_pretrained(folder)


def arguments_of(folder: Path) -> list[str]:
    return [
        *TINY,
        f"model.path={folder / 'model'}",
        "model.random_init=true",
        "algorithm.name=grpo",
        f"reward.function={write_reward_function(folder)}",
        "run.steps=2",
        f"run.dir={folder / 'runs'}",
    ]


@pytest.mark.parametrize("family", REFUSED)
def test_refused(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, particular, words = REFUSED[family]
    write_model(tmp_path / "model", kind, particular)
    assert main([*arguments_of(tmp_path), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in FAMILIES]
)
def test_family(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model", *FAMILIES[family])
    ended = run_main(arguments_of(tmp_path))
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    run = tmp_path / "runs" / "latest"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["policy/logprob_gap_max"] for line in lines if line["step"]]
    with capsys.disabled():
        print(f"\n{family}: largest gap {max(gaps):.1e}")
    assert max(gaps) < 1e-5
    exported = run / "checkpoints" / "step-000002" / "hf"
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()
    assert GenerationConfig.from_pretrained(exported).eos_token_id == 2
    assert load_tokenizer(str(exported)).get_vocab() == build_tokenizer().get_vocab()


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", STOPPED)
def test_stopped_by_the_first_step(family: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", *STOPPED[family])
    ended = run_main(arguments_of(tmp_path))
    assert ended.returncode == 1, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "vLLM and transformers do not compute the same model" in ended.stderr
