"""docs/tutorial.ipynb, the tutorial to run cell by cell, from docs/tutorial.md.

    python docs/notebook.py

A block of code whose first line is a comment with a file's name becomes a cell that writes the file, a block of
commands one that runs them. What stands between them is text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tutorial.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
# The kernel may run in an environment that is not activated.
BEGIN = """import os
import sys

os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]"""


def cells(page: str) -> list[tuple[str, str]]:
    """Type and source of each cell."""
    found, end = [], 0
    for block in BLOCK.finditer(page):
        found.append(("markdown", page[end : block.start()]))
        found.append(("code", source(block[1], block[2])))
        end = block.end()
    found = [(kind, text.strip()) for kind, text in [*found, ("markdown", page[end:])] if text.strip()]
    return [found[0], ("code", BEGIN), *found[1:]]


def source(language: str, block: str) -> str:
    if language == "sh":
        return f"%%bash\n{block}"
    name, _, text = block.partition("\n")
    return f"%%writefile {name.removeprefix('# ')}\n{text}"


def notebook(page: str) -> dict[str, Any]:
    """In nbformat 4.5."""
    of_code = {"execution_count": None, "outputs": []}
    return {
        "cells": [
            {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": text.splitlines(keepends=True)}
            | (of_code if kind == "code" else {})
            for i, (kind, text) in enumerate(cells(page))
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def text_of(page: str) -> str:
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.with_suffix(".ipynb").write_text(text_of(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
