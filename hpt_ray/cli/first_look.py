"""The configuration, and those mistakes in it that can be told before anything slow is imported: in half a second.

Wrong keys and values, and models that are not where they should be. Everything else is checked by `cli/train.py`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hpt_ray.config.load import QUICKSTART, load_config
from hpt_ray.config.schema import Config
from hpt_ray.data import mini
from hpt_ray.data.mini.base import parse_name
from hpt_ray.data.model_folder import check_model_folders


def read_config(options: Namespace) -> Config:
    """What the words of the command ask for. Raises `UserError`."""
    config = load_config(options.config or without_file(options.overrides), options.overrides)
    if mini.is_mini(config.model.path):
        parse_name(config.model.path)
    check_model_folders(config)
    return config


def without_file(overrides: Sequence[str]) -> str | None:
    """The quickstart where no file is named; with a model of one's own the schema's defaults.

    What the quickstart sets (template, limits, learning rate, ρ) was chosen for the small task alone.
    """
    models = [word.partition("=")[2] for word in overrides if word.startswith("model.path=")]
    return str(QUICKSTART) if all(mini.is_mini(model) for model in models) else None
