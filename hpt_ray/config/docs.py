"""The table of configuration keys in docs/configuration.md, made from the schema.

`python -m hpt_ray.config.docs` writes the file; with `--check` it writes nothing and exits with
code 1 where the file is not up to date. A test does the same, so a new or changed key is always visible
in a review.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterable
from pathlib import Path

import yaml

from hpt_ray.config.load import KnownKey, known_keys
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError

DOCS = Path(__file__).resolve().parents[2] / "docs"
INTRODUCTION = """\
# Configuration keys

Made from `hpt_ray/config/schema.py` by `python -m hpt_ray.config.docs`; do not edit by hand.

Set keys in a YAML file (`--config FILE`) or on the command line (`run.steps=20`), which wins. A file may build on
others: `defaults: [other.yaml]`, relative to it. A dict takes any keys below it, and `{}` empties it.
"""


def render_configuration() -> str:
    """The whole text of docs/configuration.md."""
    parts = [INTRODUCTION]
    for name, keys in itertools.groupby(known_keys().values(), lambda known: known.name.rpartition(".")[0]):
        parts.append(f"## {name or 'Top level'}\n\n{inspect.getdoc(_section(name))}\n")
        parts.append(_table(keys))
    return "\n".join(parts)


def _section(name: str) -> type:
    """The class of the section `name`; the root's is empty."""
    cls: type = Config
    for part in filter(None, name.split(".")):
        cls = typing.get_type_hints(cls)[part]
    return cls


def list_keys(section: str | None) -> str:
    """The keys of one section, or all, as text for a terminal. Raises `UserError` where there is no such section."""
    names = known_keys()
    found = [name for name in names if section is None or f"{name}.".startswith(f"{section}.")]
    if not found:
        near = difflib.get_close_matches(str(section), {name.partition(".")[0] for name in names}, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise UserError(f"no section and no key `{section}`.{hint}")
    texts = [textwrap.fill(_meaning(names[name]), 100) for name in found]
    return "\n".join(
        f"{name} = {_default(names[name]).strip('`')}\n{textwrap.indent(text, '    ')}"
        for name, text in zip(found, texts, strict=True)
    )


def _meaning(known: KnownKey) -> str:
    return known.doc + (f" Allowed: {_allowed(known)}." if _allowed(known) else "")


def write_or_check(path: Path, text: str, command: str, check: bool) -> int:
    """Write `text` to `path`, or with `check` compare only. Returns the exit code of the command."""
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path} is not up to date: run `{command}`", file=sys.stderr)
    return 1


def _table(keys: Iterable[KnownKey]) -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for known in keys:
        cells = (f"`{known.name}`", _default(known), _meaning(known))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(known: KnownKey) -> str:
    if known.default == "???":
        return "*required*"
    text = yaml.safe_dump(known.default, default_flow_style=True, width=1000, allow_unicode=True)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _allowed(known: KnownKey) -> str:
    return ", ".join(f"`{choice}`" for choice in known.choices)


if __name__ == "__main__":
    sys.exit(
        write_or_check(
            DOCS / "configuration.md",
            render_configuration(),
            "python -m hpt_ray.config.docs",
            check="--check" in sys.argv[1:],
        )
    )
