"""A user's own tokenizer beside a Qwen2 model is read as it is, not replaced by Qwen2's."""

from __future__ import annotations

import pytest

from hpt_ray.data.mini.model import model_config
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError


def test_own_tokenizer_survives_beside_a_qwen2_config(tmp_path) -> None:
    ours = build_tokenizer()
    ours.save_pretrained(tmp_path)
    model_config("t").save_pretrained(tmp_path)
    text = r"60-9=51. So the answer is 51. \boxed{51}"
    loaded = load_tokenizer(str(tmp_path))
    ids = ours(text, add_special_tokens=False).input_ids
    assert loaded(text, add_special_tokens=False).input_ids == ids
    assert loaded.decode(ids) == text


def test_a_folder_without_tokenizer_is_named(tmp_path) -> None:
    model_config("t").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer can be read there .*tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.path=\./nowhere: no such folder"):
        load_tokenizer("./nowhere")
