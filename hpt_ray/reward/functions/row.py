"""What a user's reward function may ask for beside the response and the ground truth: the rest of the prompt's row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpt_ray.types import Prompt


@dataclass(frozen=True, slots=True)
class Row:
    """The row of the data that a response answers. All responses to a prompt share one."""

    data_source: str = ""
    prompt: str | list[dict[str, str]] = ""  # as the file has it: a text, or messages {role, content}
    extra: Mapping[str, Any] = field(default_factory=dict)  # further columns, `extra_info` spread out
    opening: str = ""  # what the rendered prompt began the response with: `<think>\n`

    @classmethod
    def of(cls, prompt: Prompt) -> Row:
        return cls(prompt.data_source, prompt.source or prompt.text, prompt.extra, prompt.opening)


NO_ROW = Row()
