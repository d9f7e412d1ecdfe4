"""The tables of benchmarks/results/mini-bases/README.md, from the results of its suite.

python -m hpt_ray.tools.suite configs/mini/bases.yaml                            # goes on where it stopped
python benchmarks/bases.py --results reproductions/mini-bases/results.json       # takes the results and writes the page
python benchmarks/bases.py                                                       # writes the page again
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from quickstart import RESULTS, between_marks

FOLDER = RESULTS / "mini-bases"
MEASURES = {"ID average": "six sets like those of training", "OOD average": "two other sets", "all": "all"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="results.json of the suite")
    arguments = parser.parse_args()
    if arguments.results:
        shutil.copyfile(arguments.results, FOLDER / "results.json")
    readme = FOLDER / "README.md"
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    readme.write_text(page(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


def page(text: str, results: dict[str, Any]) -> str:
    """The README with the figures of `results`."""
    parts = [counts(results), scores(results), differences(results), choices(results)]
    return between_marks(text, "\n\n".join(parts) + "\n", of="results.json")


def title(results: dict[str, Any], method: str) -> str:
    return "before training" if method == "base" else results["suite"]["methods"][method]["title"]


def counts(results: dict[str, Any]) -> str:
    machine, keys = results["machine"], results["suite"]
    of, done = keys["models"]["t"], {run["method"] for run in results["runs"]}
    left = [title(results, name) for name in keys["matrix"]["methods"] if name not in done]
    tries = sum(len(each["tries"]) for each in results["tuning"])
    return (
        f"{len(results['runs'])} reported runs on the bases {', '.join(of['bases'])}, seeds "
        f"{', '.join(map(str, keys['matrix']['seeds']))}, after {tries} settings tried on the bases "
        f"{', '.join(of['tuning_bases'])}; {results['failures_over_all_calls']} failed, {len(results['missing'])} are "
        f"missing. Not run yet: {', '.join(left) or 'nothing'}. {', '.join(machine['cpu'])}, "
        f"{machine['num_cpus']} cores."
    )


def scores(results: dict[str, Any]) -> str:
    """A line a method: percent correct by average, and runs."""
    cells = {(row["method"], row["measure"]): row for row in results["summary"]}
    lines = [f"| method | {' | '.join(MEASURES.values())} | runs |", "|---|" + "---:|" * (len(MEASURES) + 1)]
    for method in dict.fromkeys(row["method"] for row in results["summary"]):
        rows = [cells[method, measure] for measure in MEASURES]
        texts = [points(row["mean"], row["ci95"]) for row in rows]
        runs = "" if method == "base" else str(rows[0]["n"])
        lines.append(f"| {title(results, method)} | {' | '.join(texts)} | {runs} |")
    return "\n".join(lines)


def differences(results: dict[str, Any]) -> str:
    """The reference minus each other method."""
    reference = title(results, results["suite"]["reference"])
    lines = [f"| {reference} minus | on | points | p (Holm) |", "|---|---|---:|---:|"]
    for row in results["differences"]:
        of, p = row["difference"], row["p_holm"]
        shown = "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        value = points(of["mean"], of["ci95"], sign="+")
        lines.append(f"| {title(results, row['method'])} | {MEASURES[row['measure']]} | {value} | {shown} |")
    return "\n".join(lines)


def choices(results: dict[str, Any]) -> str:
    """What the tries chose, and whether at the edge of what was tried."""
    lines = ["| method | validation scores of its tries, in the file's order | chosen |", "|---|---|---|"]
    for each in results["tuning"]:
        shares = [
            "failed" if t["validation"] is None else f"{100 * t['validation']:.1f}" for t in each["tries"]
        ]
        number = next(i for i, t in enumerate(each["tries"], 1) if t["settings"] == each["chosen"])
        edge = f", at the edge of {', '.join(each['at_edge'])}" if each["at_edge"] else ""
        lines.append(f"| {title(results, each['method'])} | {', '.join(shares)} | {number}{edge} |")
    return "\n".join(lines)


def points(mean: float, ci95: float | None, sign: str = "") -> str:
    """`96.3 ± 1.2`, in percent."""
    text = f"{100 * mean:{sign}.1f}".replace("-", "−")
    return text if ci95 is None else f"{text} ± {100 * ci95:.1f}"


if __name__ == "__main__":
    main()
