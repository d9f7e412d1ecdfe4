"""The small task as files, and the names `mini:…` under which a configuration finds them.

    mini:train                 600 questions, terse demonstrations
    mini:train-step            the same questions, step-by-step demonstrations
    mini:train-step-4000       4000 questions, step-by-step demonstrations
    mini:validation/FAMILY     48 held-out questions of one family
    mini:test/FAMILY           100 more, for numbers to publish; also of the two families `mix` and `stock`
    mini:base                  30 000 documents for the weak base
    mini:tokenizer             folder of the tokenizer

The folder is made on first use in the cache. `VERSION` goes up with every change of what is
generated, so that an old folder is never mistaken for a new one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpt_ray.data.mini.corpus import draw_base_corpus, draw_splits
from hpt_ray.data.mini.families import FAMILIES, RECOMBINED_FAMILIES, Problem, Style, solution
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.errors import UserError
from hpt_ray.utils.cache import cache_dir, cached_folder

VERSION = 2
PREFIX = "mini:"
_EXTRA_FIELDS = {"split": pa.string(), "index": pa.int64(), "operations": pa.int64()}

FILES: dict[str, str] = {
    "train": "train.parquet",
    "train-step": "train-step.parquet",
    "train-step-4000": "train-step-4000.parquet",
    "base": "base_corpus.parquet",
    "tokenizer": "tokenizer",
    **{f"validation/{family}": f"validation/{family}.parquet" for family in FAMILIES},
    **{f"test/{family}": f"test/{family}.parquet" for family in (*FAMILIES, *RECOMBINED_FAMILIES)},
}


def is_mini(uri: str) -> bool:
    """Whether this is a name of the small task rather than a path."""
    return uri.startswith(PREFIX)


def resolve(uri: str) -> Path:
    """The file or folder behind a name such as `mini:train`; UserError for a name that is none."""
    name = uri.removeprefix(PREFIX)
    if not is_mini(uri) or name not in FILES:
        close = difflib.get_close_matches(name, FILES, n=1)
        hint = f"Did you mean {PREFIX}{close[0]}? " if close else ""
        raise UserError(f"{uri} is no part of the small task. {hint}There are: {', '.join(FILES)}.")
    return cached_folder(cache_dir() / f"mini-v{VERSION}", write_mini) / FILES[name]


def write_mini(out_dir: Path) -> dict[str, int]:
    """Generate everything into `out_dir`; returns the number of rows per name of `FILES`."""
    splits = draw_splits()
    counts = {
        "train": _write(out_dir, "train", "train", _with_solutions(splits["train"], "terse")),
        "train-step": _write(out_dir, "train-step", "train", _with_solutions(splits["train"], "step")),
        "train-step-4000": _write(
            out_dir, "train-step-4000", "train-large", _with_solutions(splits["train-large"], "step")
        ),
    }
    held_out = [("validation", "validation", FAMILIES), ("test", "test", FAMILIES)]
    for source, split, families in (*held_out, ("recombined", "test", RECOMBINED_FAMILIES)):
        for family in families:
            problems = [problem for problem in splits[source] if problem.family == family]
            counts[f"{split}/{family}"] = _write(
                out_dir, f"{split}/{family}", split, _with_solutions(problems, "terse")
            )
    known = {problem.prompt for split in ("validation", "test", "train") for problem in splits[split]}
    counts["base"] = _write(out_dir, "base", "base", draw_base_corpus(known))
    build_tokenizer().save_pretrained(out_dir / FILES["tokenizer"])
    return counts


def _with_solutions(problems: list[Problem], style: Style) -> Iterable[tuple[Problem, str]]:
    return ((problem, solution(problem, style)) for problem in problems)


def _write(out_dir: Path, name: str, split: str, worked: Iterable[tuple[Problem, str]]) -> int:
    rows = (_row(i, split, problem, text) for i, (problem, text) in enumerate(worked))
    return write_rows(out_dir / FILES[name], rows, _EXTRA_FIELDS)


def _row(index: int, split: str, problem: Problem, text: str) -> dict[str, Any]:
    return make_row(
        problem.prompt,
        text,
        str(problem.answer),
        data_source=f"mini/{problem.family}",
        extra_info={"split": split, "index": index, "operations": len(problem.operations)},
    )
