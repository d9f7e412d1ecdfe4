"""The families of models: each trains, with sampler and learner in agreement, or is refused in one sentence.

A tiny random model of every family runs two steps of GRPO. The exported folder, loaded by transformers alone, has the
logits of the weights in DeepSpeed's own state, and what else a model folder holds. `benchmarks/architectures.py` makes
a table of what was seen.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from command import TINY, run_main, write_reward_function
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.learner.base import hf_name
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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GRANITE = {
    "logits_scaling": 8.0,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
}
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
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
    "granite": ("granite", GRANITE),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "gpt2": ("gpt2", {"num_key_value_heads": 2}),
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": 2}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 32}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
}
# name → the same, and the words of the refusal
REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "cohere2": (
        "cohere2",
        {"head_dim": 32},
        "vLLM gives its sliding windows one token more than transformers does",
    ),
}
QUICK = ("gemma2",)  # windows and soft-capping: of the others, `make test-all` runs each


def write_model(folder: Path, kind: str, particular: dict[str, object]) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    config = AutoConfig.for_model(kind, **{**SIZES, **particular, "vocab_size": len(tokenizer)})
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
    note(family, {"model_type": kind, "refused": words})


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in FAMILIES]
)
def test_family(family: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", *FAMILIES[family])
    ended = run_main(arguments_of(tmp_path))
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    run = tmp_path / "runs" / "latest"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["policy/logprob_gap_max"] for line in lines if line["step"]]
    assert max(gaps) < 1e-5
    checkpoint = run / "checkpoints" / "step-000002"
    exported = AutoModelForCausalLM.from_pretrained(checkpoint / "hf", dtype=torch.float32)
    is_tied = AutoConfig.from_pretrained(tmp_path / "model").tie_word_embeddings
    found = {
        "model_type": exported.config.model_type,
        "largest_gap": max(gaps),
        "equal_logits": torch.equal(logits_of(exported), logits_of(trained(checkpoint, exported.config))),
        "generation_config": GenerationConfig.from_pretrained(checkpoint / "hf").eos_token_id == 2,
        "chat_template": load_tokenizer(str(checkpoint / "hf")).chat_template == CHAT_TEMPLATE,
        "tied_weights": is_tied
        == (exported.get_output_embeddings().weight is exported.get_input_embeddings().weight),
        "is_tied": is_tied,
    }
    assert all(found[name] for name in KEPT), found
    assert load_tokenizer(str(checkpoint / "hf")).get_vocab() == build_tokenizer().get_vocab()
    note(family, found)


KEPT = ("equal_logits", "generation_config", "chat_template", "tied_weights")


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 60)[None]).logits


def trained(checkpoint: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The model of the weights that DeepSpeed saved for itself, which no export has touched."""
    (file,) = checkpoint.rglob("mp_rank_00_model_states.pt")
    state = torch.load(file, weights_only=False)["module"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(
        {hf_name(name): weight for name, weight in state.items() if name.startswith("model.")}
    )
    return model


def note(family: str, found: dict[str, object]) -> None:
    """For the table, where one is asked for."""
    if folder := os.environ.get("ARCHITECTURES_SEEN"):
        (Path(folder) / f"{family}.json").write_text(json.dumps(found), encoding="utf-8")
