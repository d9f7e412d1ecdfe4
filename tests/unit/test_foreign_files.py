"""Files of strangers that are not what they should be: a sentence that names them, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hpt_ray.config.load import load_config
from hpt_ray.config.schema import DataConfig, ModelConfig
from hpt_ray.data.dataset import load_prompts
from hpt_ray.data.files import read_raw
from hpt_ray.data.mini.model import model_config
from hpt_ray.data.model_folder import check_folder
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError
from hpt_ray.learner.model import load_policy


def bytes_only() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({text: i for i, text in enumerate([*alphabet, "<end>"])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


@pytest.mark.parametrize("content", ["[1]", "null", "[" * 100_000, '{"tokenizer_class": ', "\xff"])
def test_a_tokenizer_config_that_is_none(tmp_path: Path, content: str) -> None:
    bytes_only().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"no tokenizer can be read there"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    bytes_only().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": []}')
    with pytest.raises(UserError, match=r"no tokenizer can be read there"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("template", ["{{ 1/0 }}", "{{ messages['x'].y.z }}", "{{ 'a' * 10**12 }}"])
def test_a_chat_template_that_fails(template: str) -> None:
    tokenizer = bytes_only()
    tokenizer.chat_template = template
    made = Template(DataConfig(template="chat"), tokenizer)
    with pytest.raises(UserError, match="chat template"):
        made.render([{"role": "user", "content": "?"}])


@pytest.mark.parametrize("key", ["model.path", "reference.path"])
def test_a_quantised_model_is_not_trained(tmp_path: Path, key: str) -> None:
    config = {"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=rf"{key}=.*: its weights are quantised"):
        check_folder(str(tmp_path), key=key)
    check_folder(str(tmp_path), key="model")  # to evaluate


@pytest.mark.parametrize("size", [0, 4, 20, 1000])
def test_weights_that_are_cut_off(tmp_path: Path, size: int) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(model_config("t", "qwen2")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"model\.path={tmp_path}: no safetensors weights can be read there"):
        load_policy(ModelConfig(path=str(tmp_path)), str(tmp_path), seed=0)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    column = pa.StringArray.from_buffers(
        1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(pa.table({"prompt": column, "answer": ["1"]}), file)
    with pytest.raises(UserError, match=r"rows\.parquet, after row 0: cannot be read"):
        list(read_raw(file))


@pytest.mark.parametrize("column", ["prompt", "target", "data_source"])
def test_half_a_character(tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path / "cache"))
    row = {"prompt": "a", "target": "b", "ground_truth": "c", "data_source": "d"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | {column: "ab\ud800"}) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: the .* has half of a character, \\ud800"):
        load_prompts(
            [str(file)],
            Template(DataConfig(template="plain"), bytes_only()),
            max_prompt_tokens=10,
            max_response_tokens=10,
            demonstrations="optional",
        )


@pytest.mark.parametrize("content", ["run: {steps: " + "9" * 5000 + "}", "run: " + "[" * 5000, b"run: \xff"])
def test_a_configuration_that_no_reader_takes(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_config(file, [])
    if isinstance(content, str):
        with pytest.raises(UserError):
            load_config(None, [content.replace(": ", "=", 1)])
