"""The names of the small task's models, `mini:SIZE…`, and where they are kept. Nothing is trained here."""

from __future__ import annotations

import difflib
from pathlib import Path

from hpt_ray.data import mini
from hpt_ray.data.mini.sizes import ARCHITECTURES, SIZES
from hpt_ray.errors import UserError
from hpt_ray.utils.cache import cache_dir, cached_folder

VERSION = 1  # goes up with every change of `base_recipe` or of the corpus


# Steps and peak learning rate by size; more of either makes the base too good to show anything.
# All four bases of the suites solve 19-20 % of samples at temperature 1, and 63-64 % of training prompts at least
# once and not always in eight.
RECIPES = {"t": (1800, 4e-3), "xs": (1500, 4e-3), "w": (1800, 2.5e-3)}


def parse_name(uri: str) -> tuple[str, str, bool]:
    """`mini:xs-llama-fresh` → size, architecture, whether it is the untrained one."""
    size, *rest = uri.removeprefix(mini.PREFIX).split("-")
    architecture = next((a for a in rest if a in ARCHITECTURES), "qwen2")
    fresh = "fresh" in rest
    if size not in SIZES or set(rest) - {*ARCHITECTURES, "fresh"} or (size not in RECIPES and not fresh):
        names = [*(f"mini:{s}" for s in RECIPES), *(f"mini:{s}-fresh" for s in SIZES)]
        close = difflib.get_close_matches(uri, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"model.path={uri} is no model of the small task.{hint} There are: {', '.join(names)}."
        )
    return size, architecture, fresh


def fresh_model(size: str, architecture: str) -> Path:
    """The folder of the untrained model with its tokenizer."""

    def write(folder: Path) -> None:
        # Only now: torch and transformers are slow to import, and the folder is there but for the first time.
        from hpt_ray.data.mini.model import create_model
        from hpt_ray.data.mini.tokenizer import build_tokenizer

        create_model(size, seed=0, architecture=architecture).save_pretrained(folder)  # type: ignore[arg-type]
        build_tokenizer().save_pretrained(folder)

    return cached_folder(cache_dir() / f"mini-model-v{mini.VERSION}-{size}-{architecture}", write)


def base_folder(size: str, architecture: str) -> Path:
    """Where the trained base is kept."""
    return cache_dir() / f"mini-base-v{VERSION}-{size}-{architecture}"


def is_built(uri: str) -> bool:
    """Whether `mini:…` needs no training any more."""
    size, architecture, fresh = parse_name(uri)
    return fresh or base_folder(size, architecture).is_dir()


def tokenizer_path(model_path: str) -> str:
    """Where the tokenizer of `model.path` is, also before the small task's base has been built."""
    return str(mini.resolve("mini:tokenizer")) if mini.is_mini(model_path) else model_path
