"""The published numbers that a suite's are put beside, from configs/paper/published/tables.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

MATH = ("aime24", "aime25", "amc", "math500", "minerva", "olympiad")


@dataclass(frozen=True, slots=True)
class PaperRow:
    """`method`: name in a suite; empty where there is none. `values` in the order of the table's columns."""

    title: str
    method: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table, or the part of it for one model. `id_average`, `ood_average`: names of columns."""

    name: str
    title: str
    model: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    id_average: str = "average"
    ood_average: str = ""
    note: str = ""


_FILE = Path(__file__).resolve().parents[2] / "configs" / "paper" / "published" / "tables.yaml"
_PUBLISHED = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
# Table 4: HPT against a method → level of difficulty → its prompts, how many only HPT solves, how many only the other.
TABLE4: dict[str, dict[str, tuple[int, int, int]]] = _PUBLISHED.pop("table4")
TABLE4_BENCHMARK = "math500"
TABLE4_NOTE = (
    "The paper's Table 4 comes from other evaluation samples than its Table 2: the net gains here would be 8.6 and "
    "5.4 points on MATH-500, and Table 2 shows 7.4 and 0.8."
)
TABLES = tuple(
    PaperTable(
        name,
        **content | {"rows": tuple(PaperRow(t, method or "", tuple(v)) for method, t, *v in content["rows"])},
    )
    for name, content in _PUBLISHED.items()
)
BY_NAME = {table.name: table for table in TABLES}
