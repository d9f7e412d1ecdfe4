"""The published numbers that a suite's are put beside: Tables 2 to 6 of the paper, in percent.

Source: "Towards a Unified View of Large Language Model Post-Training", arXiv 2509.04419, and its repository's
figures results1.png and results2.png. Rows marked `*` were copied by its authors from other papers. Each row
names the method of a suite that it stands for. The paper gives one number a cell, no seed and no variance.
"""

from __future__ import annotations

from dataclasses import dataclass

MATH = ("aime24", "aime25", "amc", "math500", "minerva", "olympiad")


@dataclass(frozen=True, slots=True)
class PaperRow:
    """`values` in the order of the table's columns. `method`: name in a suite; empty where there is none."""

    title: str
    method: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table, or the part of it for one model. `id_average`, `ood_average`: names of columns."""

    name: str
    title: str
    model: str
    rows: tuple[PaperRow, ...]
    columns: tuple[str, ...] = (*MATH, "average")
    id_average: str = "average"
    ood_average: str = ""
    note: str = ""


def _rows(*rows: tuple[str, str, str]) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(t, method, tuple(map(float, values.split()))) for t, method, values in rows)


TABLES = (
    PaperTable(
        name="table2",
        title="Table 2: main comparison",
        model="Qwen2.5-Math-7B",
        columns=(*MATH, "average", "arc-c", "gpqa-diamond", "ood average"),
        ood_average="ood average",
        rows=_rows(
            ("Qwen2.5-Math-7B", "base", "12.3 4.7 33.0 43.6 8.8 13.6 19.3 30.9 28.3 29.6"),
            ("SFT", "sft", "25.1 22.8 56.1 84.2 33.8 44.7 44.5 67.4 25.3 46.4"),
            ("GRPO", "grpo", "19.4 13.8 59.1 81.8 38.2 46.2 43.1 81.2 36.4 58.8"),
            ("SFT→GRPO", "sft_then_grpo", "25.7 21.6 62.2 84.6 38.2 46.8 46.5 67.7 30.8 49.3"),
            ("LUFFY", "luffy", "26.1 21.8 66.2 88.4 41.9 54.1 49.8 80.8 39.4 60.1"),
            ("SRFT", "srft", "18.4 15.5 55.9 83.8 42.6 48.9 44.2 80.5 36.8 58.7"),
            ("HPT", "hpt", "33.0 21.9 69.4 89.2 46.0 56.9 52.7 81.6 42.9 62.3"),
            ("Qwen2.5-Math-7B-Instruct", "", "11.8 9.8 48.3 83.2 34.2 39.3 37.8 72.7 29.3 51.0"),
            ("PRIME-Zero*", "", "17.0 12.8 54.0 81.4 39.0 40.3 40.8 73.3 18.2 45.8"),
            ("SimpleRL-Zero*", "", "27.0 6.8 54.9 76.0 25.0 34.7 37.4 30.2 23.2 26.7"),
            ("OpenReasoner-Zero*", "", "16.5 15.0 52.1 82.4 33.1 47.1 41.0 66.2 29.8 48.0"),
            ("Oat-Zero*", "", "33.4 11.9 61.2 78.0 34.6 43.4 43.8 70.1 23.7 46.9"),
        ),
        note="Later work disputes the baselines: SFT done correctly on the same model and data reaches 52.2, and GRPO "
        "after it 57.0, on the same six benchmarks (arXiv 2604.23747).",
    ),
    PaperTable(
        name="table3-llama",
        title="Table 3: a weaker model",
        model="Llama-3.1-8B",
        rows=_rows(
            ("Llama-3.1-8B", "base", "0.4 0.1 4.7 13.8 4.8 3.9 4.6"),
            ("SFT*", "sft", "0.5 0.1 5.4 20.2 4.0 5.3 5.9"),
            ("GRPO*", "grpo", "0.3 0.5 9.4 23.4 17.6 6.1 9.6"),
            ("LUFFY*", "luffy", "1.9 0.1 13.5 39.0 15.1 9.6 13.2"),
            ("HPT", "hpt", "2.1 1.2 18.6 47.8 18.8 20.4 18.2"),
        ),
    ),
    PaperTable(
        name="table3-1.5b",
        title="Table 3: a smaller model",
        model="Qwen2.5-Math-1.5B",
        rows=_rows(
            ("Qwen2.5-Math-1.5B", "base", "2.8 6.1 24.5 32.8 11.0 16.4 15.6"),
            ("SFT", "sft", "14.7 17.6 45.4 78.4 29.4 35.7 36.9"),
            ("GRPO", "grpo", "12.2 8.5 43.8 71.0 33.1 35.3 34.0"),
            ("LUFFY", "luffy", "14.1 9.4 43.5 75.2 26.1 39.7 34.7"),
            ("HPT", "hpt", "16.6 17.8 51.0 81.0 37.5 47.3 41.9"),
        ),
        note="LUFFY's own number for this model is 38.0.",
    ),
    PaperTable(
        name="table5",
        title="Table 5: what a demonstration does",
        model="Qwen2.5-Math-1.5B",
        rows=_rows(
            ("off-policy RL", "hpt_off_policy", "16.6 11.8 47.3 76.2 35.3 41.6 38.1"),
            ("0.1 SFT + off-policy RL", "hpt_mix", "16.7 17.2 46.9 79.4 37.5 43.9 40.3"),
            ("SFT (HPT)", "hpt", "16.6 17.8 51.0 81.0 37.5 47.3 41.9"),
        ),
    ),
    PaperTable(
        name="table6",
        title="Table 6: the gate",
        model="Qwen2.5-Math-1.5B",
        rows=_rows(
            ("γ = 0 (HPT)", "hpt", "16.6 17.8 51.0 81.0 37.5 47.3 41.9"),
            ("γ = 1/8", "hpt_gamma_1", "18.1 14.2 46.0 75.4 35.7 42.5 38.7"),
            ("γ = 2/8", "hpt_gamma_2", "15.8 13.0 49.0 77.6 34.6 44.1 39.0"),
        ),
    ),
)

BY_NAME = {table.name: table for table in TABLES}


# Table 4, MATH-500, Qwen2.5-Math-7B. HPT against a method → level of difficulty → its prompts, how many only HPT
# solves, how many only the other does.
TABLE4 = {
    "GRPO": {
        **{"1": (43, 0, 0), "2": (90, 5, 1), "3": (105, 9, 2), "4": (128, 17, 4), "5": (134, 27, 8)},
        "all": (500, 58, 15),
    },
    "LUFFY": {
        **{"1": (43, 1, 0), "2": (90, 5, 1), "3": (105, 5, 3), "4": (128, 10, 5), "5": (134, 22, 7)},
        "all": (500, 43, 16),
    },
}
TABLE4_NOTE = (
    "The paper's Table 4 comes from other evaluation samples than its Table 2: the net gains here would be 8.6 and "
    "5.4 points on MATH-500, and Table 2 shows 7.4 and 0.8."
)
