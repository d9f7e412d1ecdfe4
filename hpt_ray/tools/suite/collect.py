"""From finished runs to one table of numbers: a `Record` a run, from which tables, claims and figures are made.

A run that is not there has no record; nothing is filled in. Scores are shares, 0 to 1, of the last evaluation in
training, or of the final evaluation where the suite asks for one. The model before training is a method of its own,
`base`, from step 0. What came of each prompt is kept beside the scores, where the run wrote it down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from hpt_ray.evaluation.mixed import PerPrompt, Unit, estimate
from hpt_ray.evaluation.results import read_results
from hpt_ray.observe.rollout_dump import dump_of, read_columns
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report import RunData, Spread, load_run, spread_of
from hpt_ray.tools.suite.passes import BASE, FINAL, Evaluation
from hpt_ray.tools.suite.runner import Done
from hpt_ray.tools.suite.suite import Suite
from hpt_ray.types import Outcome

ID, OOD, ALL = "ID average", "OOD average", "all"
COSTS = ("prompt attempts", "tokens sampled", "tokens trained", "seconds")


@dataclass(frozen=True)
class Record:
    """One run, as results.json has it; there, `run`, the content of its folder, is left out."""

    id: str
    model: str
    method: str
    seed: int
    scores: Mapping[str, float]  # by measure: sets and averages
    before_training: Mapping[str, float]  # at step 0; empty where that was not evaluated
    costs: Mapping[str, float]
    failures: Mapping[str, Any] = field(default_factory=dict)
    faults: Mapping[str, Any] = field(default_factory=dict)
    outcomes: Mapping[str, str] = field(default_factory=dict)  # set → share correct of each prompt: "1 0 0.5"
    run: RunData | None = None
    base: str = ""  # of a model that has several

    @property
    def unit(self) -> Unit:
        return self.base or self.model, self.seed


@dataclass(frozen=True)
class Results:
    """All records of a suite, and means over them."""

    suite: Suite
    records: Sequence[Record]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Average → its sets; of those that the suite has."""
        sets = self.suite.keys.sets
        groups = {ID: sets.in_distribution, OOD: sets.out_of_distribution, ALL: list(sets.test)}
        return {name: members for name, members in groups.items() if members}

    @property
    def measures(self) -> list[str]:
        """The columns of the tables: the sets by group, then the averages."""
        return [*dict.fromkeys(name for members in self.groups.values() for name in members), *self.groups]

    @property
    def methods(self) -> list[str]:
        """Base first, then in the order of the suite; those that have a score somewhere."""
        there = {record.method for record in self.records}
        base = [BASE] if any(record.before_training for record in self.records) else []
        return [*base, *(name for name in self.suite.methods if name in there)]

    def title(self, method: str) -> str:
        return "before training" if method == BASE else self.suite.methods[method].title

    def starred(self, method: str) -> str:
        """The title; with a star where the number of prompt attempts is another."""
        budget = method != BASE and self.suite.methods[method].budget
        return self.title(method) + (" *" if budget else "")

    def model_title(self, model: str) -> str:
        return self.suite.models[model].title

    def of(self, model: str, method: str) -> list[Record]:
        return [r for r in self.records if (r.model, r.method) == (model, method)]

    def runs(self, model: str, method: str) -> list[RunData]:
        return [record.run for record in self.of(model, method) if record.run is not None]

    def values(self, model: str, method: str, column: str) -> dict[Unit, PerPrompt]:
        """Run → its score prompt by prompt, set by set, if all runs have that; else its score, or a cost, as one value.

        A base has no seed: its score is that of the first run that looked at it.
        """
        if method == BASE:
            before = [r for r in self.records if r.model == model and column in r.before_training]
            return {(r.unit[0], 0): [np.array([r.before_training[column]])] for r in before[::-1]}
        there = [r for r in self.of(model, method) if column in {**r.scores, **r.costs}]
        members = self.groups.get(column, [column])
        if all(r.outcomes.keys() >= set(members) for r in there):
            return {r.unit: [np.array(r.outcomes[name].split(), float) for name in members] for r in there}
        return {r.unit: [np.array([{**r.scores, **r.costs}[column]])] for r in there}

    def spread(self, model: str, method: str, column: str) -> Spread | None:
        """Mean and standard deviation over runs, and the interval of the mixed model; None for an empty cell."""
        if not (runs := self.values(model, method, column)):
            return None
        found, plain = estimate(runs), spread_of([fmean(map(np.mean, sets)) for sets in runs.values()])
        return Spread(plain.n, found.mean, plain.std, found.ci95, found.over)

    def with_averages(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sets of the suite, and the averages of which every set is there."""
        known = {name: float(values[name]) for name in self.suite.keys.sets.test if name in values}
        return known | {
            name: fmean(known[member] for member in members)
            for name, members in self.groups.items()
            if known.keys() >= set(members)
        }


def collect(done: Done) -> Results:
    """Read every finished run of the suite."""
    records: list[Record] = []
    results = Results(done.suite, records)
    finals = {(e.model, e.base, e.method, e.seed): e for e in done.evaluations if e.kind == FINAL}
    for spec in done.runs:
        if spec.id not in done.folders:
            continue
        run = load_run(done.folders[spec.id])
        if finals:
            final = finals.get((spec.model, spec.base, spec.method, spec.seed))
            scores, outcomes = _final(final), _final_outcomes(final)
            before = _final(finals.get((spec.model, spec.base, BASE, None)))
        else:
            outcomes = _outcomes(
                done.folders[spec.id], max((s.steps[-1] for s in run.evaluations().values()), default=0)
            )
            scores = {name: series.values[-1] for name, series in run.evaluations().items()}
            before = {n: s.values[0] for n, s in run.evaluations().items() if s.steps[0] == 0}
        costs = spec.attempts, run.tokens_sampled, run.tokens_trained, run.wall_s
        records.append(
            Record(
                *(spec.id, spec.model, spec.method, spec.seed),
                scores=results.with_averages(scores),
                before_training=results.with_averages(before),
                costs=dict(zip(COSTS, map(float, costs), strict=True)),
                failures=run.summary.get("failures", {}),
                faults=run.summary.get("faults", {}),
                outcomes={name: outcomes[name] for name in done.suite.keys.sets.test if name in outcomes},
                run=run,
                base=spec.base,
            )
        )
    return results


def _final(evaluation: Evaluation | None) -> dict[str, float]:
    """Mean by benchmark; nothing where it is not done."""
    if evaluation is None or not evaluation.is_done:
        return {}
    content = json.loads((evaluation.out / "results.json").read_text(encoding="utf-8"))
    return {name: benchmark["mean"]["value"] for name, benchmark in content["benchmarks"].items()}


def _final_outcomes(evaluation: Evaluation | None) -> dict[str, str]:
    if evaluation is None or not evaluation.is_done:
        return {}
    shares: dict[str, list[float]] = {}
    for row in read_results(evaluation.out):
        shares.setdefault(row.benchmark, []).append(row.correct / row.n)
    return {name: _text(of_set) for name, of_set in shares.items()}


def _outcomes(root: Path, step: int) -> dict[str, str]:
    """Of the evaluation in training after `step`; nothing where the run kept no responses."""
    path = dump_of(RunFolder(root).rollouts, step, "eval")
    if not path.is_file():
        return {}
    shares: dict[str, dict[int, list[bool]]] = {}
    for line in read_columns(path, ["request_id", "outcome"]).to_pylist():
        name, _, number = line["request_id"].rpartition("#")
        shares.setdefault(name, {}).setdefault(int(number), []).append(
            line["outcome"] == Outcome.CORRECT.value
        )
    return {name: _text([fmean(of_set[i]) for i in sorted(of_set)]) for name, of_set in shares.items()}


def _text(shares: Sequence[float]) -> str:
    return " ".join(f"{share:.6g}" for share in shares)
