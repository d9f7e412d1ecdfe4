"""From finished runs to numbers: the score of every (model, method, seed) on every set, and what it cost.

A cell that has no run is not in the results; nothing is filled in. Scores are shares, 0 to 1, of the last
evaluation in training. The model before training is a method of its own, `base`, from step 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from hpt_ray.tools.report import RunData, Spread, load_run, spread_of
from hpt_ray.tools.suite.matrix import RunSpec
from hpt_ray.tools.suite.passes import BASE, FINAL, Evaluation
from hpt_ray.tools.suite.runner import Done
from hpt_ray.tools.suite.suite import Suite

ID, OOD, ALL = "ID average", "OOD average", "all"
COSTS = ("prompts visited", "tokens sampled", "tokens trained", "seconds")


@dataclass(frozen=True)
class Score:
    """One run: its scores by measure (sets and averages), its costs, and its folder's content."""

    spec: RunSpec
    run: RunData
    values: Mapping[str, float]
    before: Mapping[str, float]  # at step 0; empty where that was not evaluated

    @property
    def costs(self) -> dict[str, float]:
        run = self.run
        values = self.spec.attempts, run.tokens_sampled, run.tokens_trained, run.wall_s
        return dict(zip(COSTS, map(float, values), strict=True))


@dataclass(frozen=True)
class Results:
    """All scores of a suite."""

    suite: Suite
    scores: Sequence[Score]

    @cached_property
    def measures(self) -> list[str]:
        """The columns of the tables: the sets by group, then the averages."""
        sets = self.suite.keys.sets
        grouped = [*sets.in_distribution, *sets.out_of_distribution]
        names = [*grouped, *(name for name in sets.test if name not in grouped)]
        averages = [
            name for name, group in ((ID, sets.in_distribution), (OOD, sets.out_of_distribution)) if group
        ]
        return [*names, *averages, ALL]

    @property
    def methods(self) -> list[str]:
        """Base first, then in the order of the suite; those that have a score somewhere."""
        scored = {score.spec.method for score in self.scores}
        base = [BASE] if any(score.before for score in self.scores) else []
        return [*base, *(name for name in self.suite.methods if name in scored)]

    def title(self, method: str) -> str:
        return "before training" if method == BASE else self.suite.methods[method].title

    def of(self, model: str, method: str) -> list[Score]:
        return [s for s in self.scores if (s.spec.model, s.spec.method) == (model, method)]

    def by_seed(self, model: str, method: str, measure: str) -> dict[int, float]:
        """Seed → score. The base has no seed: its score is that of the first run that looked at it."""
        if method == BASE:
            of_model = (s.before for s in self.scores if s.spec.model == model and measure in s.before)
            first = next(of_model, None)
            return {} if first is None else {0: first[measure]}
        return {s.spec.seed: s.values[measure] for s in self.of(model, method) if measure in s.values}

    def spread(self, model: str, method: str, measure: str) -> Spread | None:
        """Over seeds; None for an empty cell."""
        values = list(self.by_seed(model, method, measure).values())
        return spread_of(values) if values else None

    def cost(self, model: str, method: str, name: str) -> Spread | None:
        values = [score.costs[name] for score in self.of(model, method)]
        return spread_of(values) if values else None


def collect(done: Done) -> Results:
    """Read every finished run of the suite. Where there is to be a final evaluation, its scores are the run's."""
    scores = []
    finals = {(e.model, e.method, e.seed): e for e in done.evaluations if e.kind == FINAL}
    for spec in done.runs:
        if spec.id not in done.folders:
            continue
        run = load_run(done.folders[spec.id])
        if finals:
            values = _final(finals.get((spec.model, spec.method, spec.seed)))
            before = _final(finals.get((spec.model, BASE, None)))
        else:
            values = {name: series.values[-1] for name, series in run.evaluations().items()}
            before = {n: s.values[0] for n, s in run.evaluations().items() if s.steps[0] == 0}
        scores.append(
            Score(spec, run, _with_averages(done.suite, values), _with_averages(done.suite, before))
        )
    return Results(done.suite, scores)


def _final(evaluation: Evaluation | None) -> dict[str, float]:
    """Mean by benchmark; nothing where it is not done."""
    if evaluation is None or not evaluation.is_done:
        return {}
    content = json.loads((evaluation.out / "results.json").read_text(encoding="utf-8"))
    return {name: benchmark["mean"]["value"] for name, benchmark in content["benchmarks"].items()}


def _with_averages(suite: Suite, values: Mapping[str, float]) -> dict[str, float]:
    """The sets of the suite, and the averages of which every set is there."""
    sets = suite.keys.sets
    known = {name: float(values[name]) for name in sets.test if name in values}
    groups = {ID: sets.in_distribution, OOD: sets.out_of_distribution, ALL: list(sets.test)}
    return known | {
        name: fmean(known[member] for member in members)
        for name, members in groups.items()
        if members and all(member in known for member in members)
    }
