"""Whether a model is where `model.path` says, asked before anything that reads one is imported.

`check_folder` looks at this machine alone; `ask_hub` asks the Hub, once.
"""

from __future__ import annotations

import json
from pathlib import Path

from hpt_ray.config.schema import Config
from hpt_ray.data.mini import is_mini
from hpt_ray.errors import UserError, in_one_line
from hpt_ray.utils.names import nearest_path

HUB_TIMEOUT_S = 10.0


def check_model_folders(config: Config) -> None:
    """Raises `UserError` where the model or the frozen reference of a run is not what `check_folder` wants."""
    check_folder(config.model.path, random_init=config.model.random_init)
    if config.reference.path is not None:
        check_folder(config.reference.path, key="reference.path")


def check_folder(path: str, *, key: str = "model.path", random_init: bool = False) -> None:
    """Raises `UserError` for a folder on this machine that is no whole model, and for one that was mistyped.

    A name that may be of the Hub, or a path that is another machine's, passes.
    """
    folder = Path(path).expanduser()
    if is_mini(path):
        return
    if folder.is_file():
        what = "a GGUF file, which is for inference only" if folder.suffix == ".gguf" else "a file"
        raise UserError(f"{key}={path} is {what}: name a folder with config.json and safetensors.")
    if not folder.is_dir():
        if is_path(path) or nearest_path(folder, holding="config.json"):
            check_exists(path, key=key)
        return
    names = sorted(file.name for file in folder.iterdir())
    if "config.json" not in names:
        raise UserError(f"{key}={path}: no model, for it has no config.json. {_instead(names)}")
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"model_type", "auto_map"} & content.keys():
            raise ValueError("it names no model_type")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{key}={path}: its config.json cannot be read ({error}). Copy or download the model again."
        ) from error
    if content.get("quantization_config") and key != "model":  # a model that is evaluated may be
        raise UserError(
            f"{key}={path}: its weights are quantised (quantization_config in its config.json), and a run trains and "
            "sends whole ones. Name the model that it was made from."
        )
    if not random_init and not any(name.endswith(".safetensors") for name in names):
        raise no_weights(path, "no file *.safetensors in the folder")


def is_path(path: str) -> bool:
    """Whether it can only be a path: Hub names are NAME or OWNER/NAME."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1


def check_exists(path: str, *, key: str = "model.path") -> None:
    """Raises `UserError` for a folder that is not there, where the one that it should stand in is."""
    folder = Path(path).expanduser()
    if folder.parent.is_dir() and not folder.is_dir():
        near = nearest_path(folder)
        hint = f"Did you mean {near}?" if near else "Give a model folder, a Hub name or mini:SIZE."
        raise UserError(f"{key}={path}: no such folder. {hint}")


def ask_hub(name: str) -> None:
    """Raises `OSError`, in words, where the Hub cannot be asked or has no such model. Not asked for what is cached.

    Once: transformers asks for every file, six times each, for minutes.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise OSError("no such folder, and not a name that the Hub could have") from error
    except GatedRepoError as error:
        raise OSError("it is a gated repo, and the Hub does not let you in") from error
    except RepositoryNotFoundError as error:
        raise OSError("no such folder, and the Hub has no such model, or a private one") from error
    except Exception as error:  # of whatever library the client speaks HTTP with
        raise OSError(f"no such folder, and the Hub does not answer: {in_one_line(error)}") from error


def no_weights(path: str, reason: object) -> UserError:
    return UserError(
        f"model.path={path}: no safetensors weights can be read there ({reason}). "
        "Convert the model to safetensors, or set model.random_init=true to start from random weights."
    )


def _instead(names: list[str]) -> str:
    """What to do about a folder with these files in it."""
    if "adapter_config.json" in names:
        return "It holds a LoRA adapter: merge it into its base model (PEFT's merge_and_unload) and name that folder."
    if any(name.endswith(".gguf") for name in names):
        return "It holds GGUF, which is for inference only: download the model's safetensors."
    if "metrics.jsonl" in names or "checkpoints" in names:
        return "It is a run folder: name checkpoints/step-…/hf in it."
    if {"snapshots", "refs"} <= {*names}:
        return "It is a folder of the Hub's cache: name the folder below snapshots/, or the Hub name."
    if "hf" in names:
        return "It is a checkpoint: name hf in it."
    return (
        f"It holds {', '.join(names[:5]) or 'nothing'}. Name the folder that holds the model's config.json."
    )
