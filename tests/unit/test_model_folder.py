"""What `model.path` may name, and in one sentence what is wrong with what it does name. No network is needed."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from hpt_ray.cli.mini_base import base_recipe, with_reference
from hpt_ray.config.load import QUICKSTART, load_config
from hpt_ray.data.mini.base import parse_name
from hpt_ray.data.model_folder import check_folder
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.errors import UserError

CONFIG = {"model_type": "qwen2"}


def folder(parent: Path, *files: str, config: object = None, name: str = "model") -> Path:
    made = parent / name
    made.mkdir()
    for file in files:
        (made / file).touch()
    if config is not None:
        (made / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return made


def refusal(path: Path | str, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        check_folder(str(path), **options)  # type: ignore[arg-type]
    said = str(caught.value)
    assert said.startswith(f"model.path={path}")
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("files", "config", "message"),
    [
        ((), None, "no model, for it has no config.json. It holds nothing."),
        (("adapter_config.json", "adapter_model.safetensors"), None, "LoRA adapter: merge it"),
        (("model-Q4_K_M.gguf",), None, "GGUF, which is for inference only"),
        (("metrics.jsonl",), None, "a run folder: name checkpoints/step-…/hf"),
        (("hf", "MANIFEST.json"), None, "a checkpoint: name hf in it"),
        (("snapshots", "refs"), None, "name the folder below snapshots/"),
        (("notes.txt",), None, "It holds notes.txt."),
        (("model.safetensors",), "{", "its config.json cannot be read"),
        (("model.safetensors",), {}, "it names no model_type"),
        (("pytorch_model.bin",), CONFIG, "no safetensors weights"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(
    files: tuple[str, ...], config: object, message: str, tmp_path: Path
) -> None:
    assert message in refusal(folder(tmp_path, *files, config=config))


def test_whole_folders_and_names_of_the_hub_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_folder(str(folder(tmp_path, "model.safetensors", config=CONFIG)))
    check_folder(str(folder(tmp_path, config=CONFIG, name="bare")), random_init=True)
    for name in ("mini:t", "Qwen/Qwen2.5-Math-1.5B", "gpt2", "/no/such/place/model"):
        check_folder(name)


def test_a_slip_names_the_folder_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    there = folder(tmp_path / "models", "model.safetensors", config=CONFIG, name="Qwen2.5-0.5B")
    assert f"no such folder. Did you mean {there}?" in refusal(tmp_path / "models" / "Qwen2.5-0.5b-")
    assert "Did you mean models/Qwen2.5-0.5B?" in refusal("models/Qwen2.5-0.5")
    assert "no such folder. Give a model folder" in refusal("./nothing-like-it")
    assert "is a GGUF file" in refusal(folder(tmp_path, "x.gguf", name="gguf") / "x.gguf")


@pytest.mark.parametrize("name", ["some/model", "some--model//x", "nomodel"])
def test_a_model_that_is_not_here_costs_a_moment_where_the_hub_does_not_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    begin = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_tokenizer(name)
    assert time.perf_counter() - begin < 5, "asked more than once"
    assert f"model.path={name}: no " in str(caught.value)
    assert "such folder" in str(caught.value)


def test_bases_of_the_small_task_are_drawn_by_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path))
    bases = {name: parse_name(name) for name in ("mini:t", "mini:t-s1", "mini:t-s2", "mini:t-llama-s1")}
    assert [base.seed for base in bases.values()] == [0, 1, 2, 1]
    assert len({base.base_folder for base in bases.values()}) == 4
    recipes = [base_recipe(base) for base in bases.values()]
    assert [recipe.run.seed for recipe in recipes] == [0, 1, 2, 1]
    assert len({recipe.run.name for recipe in recipes}) == 4
    bases["mini:t-s1"].base_folder.mkdir()
    assert [base.is_built for base in bases.values()] == [False, True, False, False]


@pytest.mark.parametrize("name", ["mini:t-s1-s2", "mini:t-fresh-s1", "mini:t-x", "mini:m", "mini:t-s"])
def test_what_is_no_model_of_the_small_task_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"model.path={name} is no model of the small task"):
        parse_name(name)


def test_a_frozen_policy_of_the_small_task_is_found_where_it_is_asked_for() -> None:
    def path_of(*choices: str) -> str | None:
        config = load_config(QUICKSTART, ["reference.path=mini:t-fresh", *choices])
        # An untrained model needs no cluster.
        return asyncio.run(with_reference(config, None, Console())).reference.path  # type: ignore[arg-type]

    teacher = path_of("algorithm.name=opd")
    assert teacher is not None
    assert Path(teacher, "config.json").is_file()
    assert path_of("algorithm.name=grpo") == "mini:t-fresh"
