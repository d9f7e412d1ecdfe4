"""From finished runs to one table of numbers: a `Record` a run, from which tables, claims and figures are made.

A run that is not there has no record; nothing is filled in. Scores are shares, 0 to 1, of the last evaluation in
training, or of the final evaluation where the suite asks for one. The model before training is a method of its own,
`base`, from step 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from hpt_ray.evaluation.results import read_results
from hpt_ray.evaluation.statistics import Asked
from hpt_ray.observe.rollout_dump import dump_of, read_columns
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report import RunData, Spread, load_run, spread_of
from hpt_ray.tools.suite.passes import BASE, FINAL, Evaluation
from hpt_ray.tools.suite.runner import Done
from hpt_ray.tools.suite.suite import Suite

ID, OOD, ALL = "ID average", "OOD average", "all"
COSTS = ("prompt attempts", "tokens sampled", "tokens trained", "seconds")


@dataclass(frozen=True)
class Record:
    """One run, as results.json has it, but for `outcomes` and `run`, the content of its folder."""

    id: str
    model: str
    method: str
    seed: int
    scores: Mapping[str, float]  # by measure: sets and averages
    before_training: Mapping[str, float]  # at step 0; empty where that was not evaluated
    costs: Mapping[str, float]
    # By set and prompt, the share of its responses that are correct; empty where a run has not kept them.
    outcomes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failures: Mapping[str, Any] = field(default_factory=dict)
    faults: Mapping[str, Any] = field(default_factory=dict)
    run: RunData | None = None


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

    def by_seed(self, model: str, method: str, column: str) -> dict[int, float]:
        """Seed → a score or a cost. The base has no seed: its score is that of the first run that looked at it."""
        if method == BASE:
            before = [r.before_training for r in self.records if r.model == model]
            return dict([(0, scores[column]) for scores in before if column in scores][:1])
        rows = [(r.seed, {**r.scores, **r.costs}) for r in self.of(model, method)]
        return {seed: values[column] for seed, values in rows if column in values}

    def spread(self, model: str, method: str, column: str) -> Spread | None:
        """Over seeds, and over prompts where their outcomes are known; None for an empty cell."""
        values = list(self.by_seed(model, method, column).values())
        return spread_of(values, self.asked(model, method, column)) if values else None

    def asked(self, model: str, method: str, column: str, minus: str | None = None) -> Asked | None:
        """What the choice of prompts adds to the variance of a method's mean, or of its difference to another's.

        None for what is no score, and where a run has kept no outcomes or was asked other prompts.
        """
        if column in self.groups:
            parts = [self.asked(model, method, member, minus) for member in self.groups[column]]
            known = [part for part in parts if part is not None]
            return Asked.average(known) if known and len(known) == len(parts) else None
        ours, theirs = (
            {r.seed: r.outcomes.get(column, {}) for r in self.of(model, name)}
            for name in (method, minus or method)
        )
        seeds = sorted(ours.keys() & theirs.keys())
        rows = [each[seed] for seed in seeds for each in (ours, theirs)]
        if not rows or not rows[0] or any(row.keys() != rows[0].keys() for row in rows):
            return None
        values = [
            np.array([[of[seed][prompt] for prompt in rows[0]] for seed in seeds]) for of in (ours, theirs)
        ]
        return Asked.of(values[0] - values[1] if minus else values[0])

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
    finals = {(e.model, e.method, e.seed): e for e in done.evaluations if e.kind == FINAL}
    for spec in done.runs:
        if spec.id not in done.folders:
            continue
        run = load_run(done.folders[spec.id])
        if finals:
            final = finals.get((*spec.pair, spec.seed))
            scores, outcomes = _final(final), _final_outcomes(final)
            before = _final(finals.get((spec.model, BASE, None)))
        else:
            scores = {name: series.values[-1] for name, series in run.evaluations().items()}
            before = {n: s.values[0] for n, s in run.evaluations().items() if s.steps[0] == 0}
            outcomes = _last_outcomes(run)
        costs = spec.attempts, run.tokens_sampled, run.tokens_trained, run.wall_s
        records.append(
            Record(
                *(spec.id, spec.model, spec.method, spec.seed),
                scores=results.with_averages(scores),
                before_training=results.with_averages(before),
                costs=dict(zip(COSTS, map(float, costs), strict=True)),
                failures=run.summary.get("failures", {}),
                faults=run.summary.get("faults", {}),
                outcomes=outcomes,
                run=run,
            )
        )
    return results


def _final(evaluation: Evaluation | None) -> dict[str, float]:
    """Mean by benchmark; nothing where it is not done."""
    if evaluation is None or not evaluation.is_done:
        return {}
    content = json.loads((evaluation.out / "results.json").read_text(encoding="utf-8"))
    return {name: benchmark["mean"]["value"] for name, benchmark in content["benchmarks"].items()}


Outcomes = dict[str, dict[str, float]]


def _final_outcomes(evaluation: Evaluation | None) -> Outcomes:
    if evaluation is None or not evaluation.is_done:
        return {}
    found: Outcomes = {}
    for row in read_results(evaluation.out):
        found.setdefault(row.benchmark, {})[row.prompt_id] = row.correct / row.n
    return found


def _last_outcomes(run: RunData) -> Outcomes:
    """Of the last evaluation while training; nothing where the run did not keep its responses."""
    steps = {int(series.steps[-1]) for series in run.evaluations().values()}
    file = dump_of(RunFolder(run.root).rollouts, max(steps, default=0), "eval")
    if len(steps) != 1 or not file.is_file():
        return {}
    answers: dict[str, dict[str, list[bool]]] = {}
    for line in read_columns(file, ["request_id", "outcome"]).to_pylist():
        name, _, number = line["request_id"].rpartition("#")
        answers.setdefault(name, {}).setdefault(number, []).append(line["outcome"] == "correct")
    return {name: {number: fmean(each) for number, each in of.items()} for name, of in answers.items()}
