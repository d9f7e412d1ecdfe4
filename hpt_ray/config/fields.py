"""How a key of the schema is written down."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def key(default: Any, doc: str, *, choices: tuple[str, ...] = (), minimum: float | None = 0) -> Any:
    """A configuration key: its default, what it does, and what it may be. `minimum` is of numbers only."""
    metadata = {"doc": doc, "choices": choices, "minimum": minimum}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type) -> Any:
    return field(default_factory=cls)
