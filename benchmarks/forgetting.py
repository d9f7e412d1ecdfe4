"""What HPT forgets on the small task, and what `learner.base_pull` does about it.

    python benchmarks/forgetting.py             # goes on where the last call stopped
    python benchmarks/forgetting.py --pages     # write its figures into docs/methods.md

The demo's run (configs/quickstart.yaml) with GRPO, with HPT, and with HPT and a pull κ to the base. κ is chosen by a
rule that was set before the first run: of the strengths in `PULLS`, the one with the largest mean of accuracy in and
out of distribution over the bases of `CHOICE`, on validation prompts. It is reported on the bases and run seeds of
`REPORT`, on test prompts; none of these decided anything. A base is drawn by its seed (`mini:t-sB`), and seeds of runs
are nested in bases.

Writes one JSON with versions, machine, every run that was completed, and `result`: the chosen κ, the accuracies by
method, and the differences that the goal names (in distribution against HPT, out of distribution against GRPO): mean
over bases, with a 95 % interval by Student's t over the bases' means, and the least base. Until all runs of a part are
there, `result` says how many are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from machine import machine, versions, write
from quickstart import RESULTS, ROOT, accuracies, between_marks, command, ranges, spread
from scipy.stats import t as student

from hpt_ray.data.mini import FAMILIES, TRAIN_FAMILIES
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.utils.cache import cache_dir

RESULT = RESULTS / "forgetting.json"
PAGE = ROOT / "docs" / "methods.md"
PULLS = (5.0, 20.0, 80.0)
CHOICE = ((1, 2, 3, 4), (0,))  # bases, seeds of runs
REPORT = ((101, 102, 103), (0, 1, 2))
BOTH = ("in_distribution", "out_of_distribution")


@dataclass(frozen=True)
class Run:
    method: str  # grpo, hpt
    pull: float  # κ
    base: int
    seed: int
    split: str  # that the eval sets are taken from

    @property
    def label(self) -> str:
        return f"{self.method}, κ = {self.pull:g}" if self.pull else self.method


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", action="store_true", help="only write the page again")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file to go on with")
    arguments = parser.parse_args()
    if arguments.pages:
        report = json.loads(arguments.out.read_text(encoding="utf-8"))
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
        return
    report: dict[str, Any] = {"benchmark": "forgetting", "runs": []}
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text(encoding="utf-8"))
    report |= {"versions": versions(), "machine": machine()}
    while missing := next((run for run in planned(report["runs"]) if not found(report["runs"], run)), None):
        report["runs"].append({**asdict(missing), **train(missing)})
        report["result"] = result(report["runs"])
        write(arguments.out, report)


def planned(done: Sequence[dict[str, Any]]) -> Iterator[Run]:
    """All runs, those that choose κ first; the others only once it is chosen."""
    yield from part(CHOICE, PULLS, "validation")
    if (chosen := choice(done)) is not None:
        yield from part(REPORT, (chosen,), "test")


def part(of: tuple[tuple[int, ...], tuple[int, ...]], pulls: Sequence[float], split: str) -> Iterator[Run]:
    methods = [("grpo", 0.0), ("hpt", 0.0), *(("hpt", pull) for pull in pulls)]
    bases, seeds = of
    return (Run(*method, base, seed, split) for base in bases for seed in seeds for method in methods)


def found(done: Sequence[dict[str, Any]], run: Run) -> dict[str, Any] | None:
    """The figures of a run, if it was completed."""
    return next((figures for figures in done if asdict(run).items() <= figures.items()), None)


def train(run: Run) -> dict[str, Any]:
    """One run of the demo: accuracies at its end and before it, failures that it survived."""
    with tempfile.TemporaryDirectory() as folder:
        command(
            "hpt_ray.main",
            [
                *("--config", str(ROOT / "configs" / "quickstart.yaml")),
                f"model.path=mini:t-s{run.base}",
                f"algorithm.name={run.method}",
                f"learner.base_pull={run.pull}",
                f"run.seed={run.seed}",
                f"run.dir={folder}",
                "evaluation.every=100",
                *(f"evaluation.sets.{name}=mini:{run.split}/{family}" for name, family in sets()),
            ],
            cache_dir(),
        )
        made = RunFolder(Path(folder) / "latest")
        summary = json.loads(made.summary.read_text(encoding="utf-8"))
        last = made.read_metrics()[-1]
    return {
        "accuracy": accuracies(summary["evaluations"]),
        "base_distance": last.get("optim/base_distance"),
        "failures": summary["failures"],
    }


def sets() -> list[tuple[str, str]]:
    """Name and family of the demo's eval sets."""
    return [(family if family in TRAIN_FAMILIES else f"ood_{family}", family) for family in FAMILIES]


# -- what it comes to -------------------------------------------------------------------------------


def choice(done: Sequence[dict[str, Any]]) -> float | None:
    """The chosen κ; None until all runs that choose it are there."""
    runs = [(run, found(done, run)) for run in part(CHOICE, PULLS, "validation")]
    if any(figures is None for _, figures in runs):
        return None
    return max(
        PULLS,
        key=lambda pull: fmean(
            figures["accuracy"][name] for run, figures in runs if run.pull == pull for name in BOTH
        ),
    )


def result(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    chosen = choice(done)
    parts = {"choice": part(CHOICE, PULLS, "validation"), "report": part(REPORT, (chosen or 0.0,), "test")}
    report: dict[str, Any] = {"chosen_pull": chosen}
    for name, runs in parts.items():
        runs = list(runs)
        complete = [(run, figures) for run in runs if (figures := found(done, run)) is not None]
        bases = sorted({run.base for run, _ in complete})
        report[name] = {
            "bases": bases,
            "runs": len(complete),
            "of": len(runs),
            "accuracy": by_method(complete),
        }
    if report["report"]["runs"] == report["report"]["of"]:
        pulled = f"hpt, κ = {chosen:g}"
        report["differences"] = {
            "in distribution, against hpt": difference(done, pulled, "hpt", "in_distribution"),
            "out of distribution, against grpo": difference(done, pulled, "grpo", "out_of_distribution"),
            "out of distribution, against hpt": difference(done, pulled, "hpt", "out_of_distribution"),
        }
    return report


def by_method(runs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of each method: mean, least and most over its runs."""
    labels = dict.fromkeys(run.label for run, _ in runs)
    return {label: ranges([figures for run, figures in runs if run.label == label]) for label in labels}


def difference(done: Sequence[dict[str, Any]], label: str, other: str, name: str) -> dict[str, Any]:
    """Of two methods on the reported bases: pairs of one base and seed, averaged by base."""
    runs = list(part(REPORT, (choice(done) or 0.0,), "test"))

    def of(label: str, base: int) -> float:
        mine = [found(done, run) for run in runs if run.label == label and run.base == base]
        return fmean(figures["accuracy"][name] for figures in mine if figures)

    bases = {base: of(label, base) - of(other, base) for base in REPORT[0]}
    values = list(bases.values())
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return {"mean": fmean(values), "interval": [fmean(values) - half, fmean(values) + half], "bases": bases}


def page(text: str, report: dict[str, Any]) -> str:
    """docs/methods.md with the report's figures."""
    return between_marks(text, table(report), of="forgetting.json")


def table(report: dict[str, Any]) -> str:
    """What docs/methods.md says: one line a method, first of the bases that chose κ, then of the others."""
    lines = []
    for name, prompts in (("choice", "validation"), ("report", "test")):
        part = report["result"][name]
        if not part["runs"]:
            continue
        lines += [
            f"Bases {', '.join(map(str, part['bases']))}, {prompts} prompts, {part['runs']} of {part['of']} runs; mean "
            "(least to most):",
            "",
            "| method | in distribution | out of distribution |",
            "|---|---|---|",
            *(
                f"| {label} | " + " | ".join(spread(accuracy[one]) for one in BOTH) + " |"
                for label, accuracy in part["accuracy"].items()
            ),
            "",
        ]
    for what, of in report["result"].get("differences", {}).items():
        low, high = of["interval"]
        lines.append(f"- {what}: {of['mean']:+.1%} ({low:+.1%} to {high:+.1%})")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
