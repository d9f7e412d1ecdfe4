"""What HPT forgets on the small task, and what a pull to the base and rehearsal do about it.

    python benchmarks/forgetting.py             # goes on where the last call stopped
    python benchmarks/forgetting.py --pages     # write its figures into docs/methods.md

The demo's run (configs/quickstart.yaml) with GRPO, with HPT, with HPT and a pull κ to the base (`learner.base_pull`),
and with HPT and rehearsal: M rows a step (`data.rehearsal_per_step`) of what the base itself answered, at temperature
1, to other prompts of the families that are out of distribution. κ and M are chosen by a rule that was set before the
first run: of the strengths in `REMEDIES`, the one with the largest mean of accuracy in and out of distribution over
the bases of `CHOICE`, on validation prompts. It is reported on the bases and run seeds of `REPORT`, on test prompts;
none of these decided anything. A base is drawn by its seed (`mini:t-sB`), and seeds of runs are nested in bases.

Writes one JSON with versions, machine, every run that was completed, and `result`: the chosen strengths, the accuracies
by method, and the differences that the goal names (in distribution against HPT, out of distribution against GRPO and
HPT): mean over bases, with a 95 % interval by Student's t over the bases' means. Until all runs of a part are there,
`result` says how many are.
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

import pyarrow as pa
from machine import machine, versions, write
from quickstart import RESULTS, ROOT, accuracies, between_marks, command, ranges, spread
from scipy.stats import t as student

from hpt_ray.data.mini import FAMILIES, OOD_FAMILIES, TRAIN_FAMILIES
from hpt_ray.data.mini.corpus import draw_split, draw_splits
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.utils.cache import cache_dir, cached_folder

RESULT = RESULTS / "forgetting.json"
PAGE = ROOT / "docs" / "methods.md"
Method = tuple[str, float, int]  # algorithm, κ, M
BASELINES: tuple[Method, ...] = (("grpo", 0.0, 0), ("hpt", 0.0, 0))
REMEDIES: dict[str, tuple[Method, ...]] = {
    "pull": (("hpt", 5.0, 0), ("hpt", 20.0, 0), ("hpt", 80.0, 0)),
    "rehearsal": (("hpt", 0.0, 8), ("hpt", 0.0, 32)),
}
NUM_PAST = 200  # prompts that the base answers, to be rehearsed
CHOICE = ((1, 2, 3, 4), (0,))  # bases, seeds of runs
REPORT = ((101, 102, 103), (0, 1, 2))
BOTH = ("in_distribution", "out_of_distribution")
GOALS = (("in_distribution", "hpt"), ("out_of_distribution", "grpo"), ("out_of_distribution", "hpt"))


@dataclass(frozen=True)
class Run:
    method: str  # grpo, hpt
    pull: float  # κ
    rehearsal: int  # M
    base: int
    seed: int
    split: str  # that the eval sets are taken from

    @property
    def label(self) -> str:
        return label((self.method, self.pull, self.rehearsal))


def label(method: Method) -> str:
    name, pull, rehearsal = method
    return name + (f", κ = {pull:g}" if pull else "") + (f", M = {rehearsal}" if rehearsal else "")


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
        # The first runs had no such field.
        report["runs"] = [{"rehearsal": 0, **run} for run in report["runs"]]
    report |= {"versions": versions(), "machine": machine()}
    while missing := next((run for run in planned(report["runs"]) if not found(report["runs"], run)), None):
        report["runs"].append({**asdict(missing), **train(missing)})
        report["result"] = result(report["runs"])
        write(arguments.out, report)


def planned(done: Sequence[dict[str, Any]]) -> Iterator[Run]:
    """All runs, those that choose the strengths first; the others only once these are chosen."""
    for strengths in REMEDIES.values():
        yield from part(CHOICE, strengths, "validation")
    yield from part(REPORT, list(choices(done).values()), "test")


def part(
    of: tuple[tuple[int, ...], tuple[int, ...]], remedies: Sequence[Method], split: str
) -> Iterator[Run]:
    """The runs of the baselines and the remedies; none where there is no remedy yet."""
    bases, seeds = of
    methods = (*BASELINES, *remedies) if remedies else ()
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
                f"data.rehearsal_per_step={run.rehearsal}",
                *([f"data.rehearsal=[{answers_of(run.base)}]"] if run.rehearsal else []),
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
        "rehearsal_loss": last.get("learner/rehearsal_loss"),
        "failures": summary["failures"],
    }


def answers_of(base: int) -> Path:
    """What a base answers to prompts of the families that are out of distribution, none of them held out."""

    def build(folder: Path) -> None:
        splits = draw_splits()
        held_out = {problem.prompt for split in ("validation", "test") for problem in splits[split]}
        rows = (
            make_row(
                problem.prompt,
                None,
                str(problem.answer),
                data_source=f"mini/{problem.family}",
                extra_info={"split": "past", "index": index},
            )
            for index, problem in enumerate(draw_split("past", OOD_FAMILIES, NUM_PAST, held_out))
        )
        write_rows(folder / "past.parquet", rows, {"split": pa.string(), "index": pa.int64()})
        asked = [f"model=mini:t-s{base}", f"sets.past={folder / 'past.parquet'}", f"out={folder}"]
        asked += ["temperature=1", "top_p=1", "samples=2", "max_response_tokens=44", "keep_texts=true"]
        asked += ["data.template=plain", "data.add_bos=true", "reward.function=boxed"]
        command("hpt_ray.cli.evaluate", [*asked, "rollout.kv_cache_gib=0.25"], cache_dir())
        command(
            "hpt_ray.data.prepare", ["responses", "--source", str(folder), "--out", str(folder)], cache_dir()
        )

    return cached_folder(cache_dir() / f"forgetting-past-v1-s{base}", build) / "responses.jsonl"


def sets() -> list[tuple[str, str]]:
    """Name and family of the demo's eval sets."""
    return [(family if family in TRAIN_FAMILIES else f"ood_{family}", family) for family in FAMILIES]


# -- what it comes to -------------------------------------------------------------------------------


def choices(done: Sequence[dict[str, Any]]) -> dict[str, Method]:
    """The chosen strength of each remedy, of which all runs that choose it are there."""
    chosen = {}
    for remedy, strengths in REMEDIES.items():
        runs = [(run, found(done, run)) for run in part(CHOICE, strengths, "validation")]
        if all(figures for _, figures in runs):
            scores = {method: score(runs, label(method)) for method in strengths}
            chosen[remedy] = max(strengths, key=scores.__getitem__)
    return chosen


def score(runs: Sequence[tuple[Run, dict[str, Any] | None]], name: str) -> float:
    """Mean of accuracy in and out of distribution over the runs of one method."""
    return fmean(
        figures["accuracy"][one] for run, figures in runs if figures and run.label == name for one in BOTH
    )


def result(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    chosen = choices(done)
    strengths = [method for of_remedy in REMEDIES.values() for method in of_remedy]
    parts = {
        "choice": part(CHOICE, strengths, "validation"),
        "report": part(REPORT, list(chosen.values()), "test"),
    }
    report: dict[str, Any] = {"chosen": {remedy: label(method) for remedy, method in chosen.items()}}
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
    report["differences"] = {}
    for method in chosen.values():
        if all(found(done, run) for run in part(REPORT, [method], "test")):
            for name, other in GOALS:
                what = f"{label(method)}: {name.replace('_', ' ')}, against {other}"
                report["differences"][what] = difference(done, method, other, name)
    return report


def by_method(runs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of each method: mean, least and most over its runs."""
    labels = dict.fromkeys(run.label for run, _ in runs)
    return {label: ranges([figures for run, figures in runs if run.label == label]) for label in labels}


def difference(done: Sequence[dict[str, Any]], method: Method, other: str, name: str) -> dict[str, Any]:
    """Of a remedy and a baseline on the reported bases: pairs of one base and seed, averaged by base."""
    runs = list(part(REPORT, [method], "test"))

    def of(one: str, base: int) -> float:
        mine = [found(done, run) for run in runs if run.label == one and run.base == base]
        return fmean(figures["accuracy"][name] for figures in mine if figures)

    bases = {base: of(label(method), base) - of(other, base) for base in REPORT[0]}
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
