"""Whether a model folder has weights, asked before anything that reads weights is imported."""

from __future__ import annotations

from pathlib import Path

from hpt_ray.config.schema import ModelConfig
from hpt_ray.errors import UserError


def check_weights(config: ModelConfig) -> None:
    """Raises `UserError` for a model folder on this machine that the learner will find no weights in."""
    folder = Path(config.path).expanduser()
    if folder.is_dir() and not config.random_init and not any(folder.glob("*.safetensors")):
        raise no_weights(config.path, "no file *.safetensors in the folder")


def no_weights(path: str, reason: object) -> UserError:
    return UserError(
        f"model.path={path}: no safetensors weights can be read there ({reason}). "
        "Convert the model to safetensors, or set model.random_init=true to start from random weights."
    )
