"""Values that a configuration takes from the environment: used as they are, written as the reference `${oc.env:NAME}`.

A run needs its secrets, and nobody who reads its files does. So such a value knows how it stands in the configuration,
and what is written of a configuration goes through `written`, or `public` where other people read it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from hpt_ray.text import redacted

_KEY = re.compile(r"\$\{([\w.]+)\}")  # a reference to another key


class FromEnvironment(str):
    """A text with a part from the environment. Example: `FromEnvironment("Bearer 1", "Bearer ${oc.env:KEY}")`."""

    reference: str

    def __new__(cls, value: str, reference: str) -> FromEnvironment:
        self = super().__new__(cls, value)
        self.reference = reference
        return self

    def __repr__(self) -> str:
        return repr(self.reference)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return FromEnvironment, (str(self), self.reference)

    def __deepcopy__(self, memo: object) -> FromEnvironment:
        return self


def written(value: Any) -> Any:
    """A configuration, or a part of one, as it is written down for this user: with references for their values."""
    return _mapped(value, lambda text: text.reference if isinstance(text, FromEnvironment) else text)


def public(value: Any) -> Any:
    """The same for whoever reads trackers, reports and logs: addresses have no passwords and keys."""
    return _mapped(value, lambda text: redacted(written(text)))


def keep_references(value: Any, raw: Any, root: dict[str, Any]) -> Any:
    """`value` whose texts know how they were written in `raw`, the same before references were resolved.

    `root` is the whole configuration that `raw` is a part of; references to its keys are followed.
    """
    while isinstance(raw, str) and (key := _KEY.fullmatch(raw)):
        raw = _at(root, key[1])
    if isinstance(value, str) and isinstance(raw, str):
        reference = _expanded(raw, root)
        return FromEnvironment(value, reference) if "${" in reference else value
    if dataclasses.is_dataclass(value) and isinstance(raw, dict):
        for field in dataclasses.fields(value):
            kept = keep_references(getattr(value, field.name), raw[field.name], root)
            setattr(value, field.name, kept)
    elif isinstance(value, dict) and isinstance(raw, dict):
        return {key: keep_references(inner, raw[key], root) for key, inner in value.items()}
    elif isinstance(value, list) and isinstance(raw, list):
        return [keep_references(*pair, root) for pair in zip(value, raw, strict=True)]
    return value


def _expanded(raw: str, root: dict[str, Any]) -> str:
    """With the texts of other keys in the place of references to them: what is left comes from outside."""
    return _KEY.sub(lambda key: _expanded(str(_at(root, key[1])), root), raw)


def _at(root: Any, name: str) -> Any:
    for part in name.split("."):
        root = root.get(part) if isinstance(root, dict) else None
    return root


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(inner, change) for inner in value]
    return value
