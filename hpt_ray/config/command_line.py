"""What the commands that take a configuration have in common: options and `key=value` words, in any order."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from hpt_ray.config import foreign
from hpt_ray.config.load import COMMAND_LINE, known_keys, nearest_key
from hpt_ray.errors import UserError


def parse_words(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and `key=value` words in any order. Raises `UserError` for an option that there is not."""
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise UserError("\n".join(_no_option(parser, word) for word in unknown))
    return options


def _no_option(parser: argparse.ArgumentParser, word: str) -> str:
    """Where it is meant for a key, how the key is written."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    options = [option for action in parser._actions for option in action.option_strings]
    if near := difflib.get_close_matches(word, options, n=1, cutoff=0.8):
        return f"{COMMAND_LINE}: no option `{word}`. Did you mean `{near[0]}`?"
    key, note = foreign.meaning(name) or (name if name in known_keys() else nearest_key(name), "")
    means = f": {key}=VALUE" if key else ", as in run.steps=20"
    return (
        f"{COMMAND_LINE}: no option `{word}`. Keys are written without dashes{means}{note and f' ({note})'}."
    )
