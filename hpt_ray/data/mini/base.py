"""The names of the small task's models, `mini:SIZE…`, and where they are kept. Nothing is trained here."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from hpt_ray.data import mini
from hpt_ray.data.mini.sizes import ARCHITECTURES, SIZES, Architecture
from hpt_ray.errors import UserError
from hpt_ray.utils.cache import cache_dir, cached_folder

VERSION = 1  # goes up with every change of `base_recipe` or of the corpus


# Steps and peak learning rate by size; more of either makes the base too good to show anything.
# All four bases of the suites solve 19-20 % of samples at temperature 1, and 63-64 % of training prompts at least
# once and not always in eight.
RECIPES = {"t": (1800, 4e-3), "xs": (1500, 4e-3), "w": (1800, 2.5e-3)}


@dataclass(frozen=True)
class MiniModel:
    """A model of the small task: the base of a recipe whose data come in the order of `seed`, or untrained."""

    size: str
    architecture: Architecture
    seed: int
    is_fresh: bool

    @property
    def base_folder(self) -> Path:
        """Where the trained base is kept."""
        drawn = f"-s{self.seed}" if self.seed else ""
        return cache_dir() / f"mini-base-v{VERSION}-{self.size}-{self.architecture}{drawn}"

    @property
    def is_built(self) -> bool:
        """Whether it needs no training any more."""
        return self.is_fresh or self.base_folder.is_dir()


def parse_name(uri: str) -> MiniModel:
    """Example: `mini:xs-llama-s3` is the Llama of size xs trained with seed 3, `mini:xs-fresh` an untrained Qwen2."""
    size, *rest = uri.removeprefix(mini.PREFIX).split("-")
    architecture: Architecture = next((a for a in ARCHITECTURES if a in rest), "qwen2")
    seed = next((part for part in rest if re.fullmatch(r"s\d{1,4}", part)), "s0")
    fresh = "fresh" in rest
    known = size in (SIZES if fresh else RECIPES) and not (fresh and seed != "s0")
    if not known or set(rest) - {*ARCHITECTURES, "fresh", seed}:
        names = [*(f"mini:{s}" for s in RECIPES), *(f"mini:{s}-fresh" for s in SIZES)]
        close = difflib.get_close_matches(uri, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"model.path={uri} is no model of the small task.{hint} There are: {', '.join(names)}."
        )
    return MiniModel(size, architecture, int(seed[1:]), fresh)


def fresh_model(model: MiniModel) -> Path:
    """The folder of the model, untrained, with its tokenizer."""

    def write(folder: Path) -> None:
        # Only now: torch and transformers are slow to import, and the folder is there but for the first time.
        from hpt_ray.data.mini.model import create_model
        from hpt_ray.data.mini.tokenizer import build_tokenizer

        create_model(model.size, seed=0, architecture=model.architecture).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)

    return cached_folder(cache_dir() / f"mini-model-v{mini.VERSION}-{model.size}-{model.architecture}", write)


def tokenizer_path(model_path: str) -> str:
    """Where the tokenizer of `model.path` is, also before the small task's base has been built."""
    return str(mini.resolve("mini:tokenizer")) if mini.is_mini(model_path) else model_path
