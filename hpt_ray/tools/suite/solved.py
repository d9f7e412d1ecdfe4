"""pass@k prompt by prompt, so that two methods are compared on the same prompts.

In: finished evaluations of the kind `pass_at_k`. Out: for each (model, method) the chance per prompt that one of
k samples is right, the mean over its seeds; means in which each benchmark weighs the same; paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpt_ray.errors import UserError
from hpt_ray.evaluation.estimates import Estimate, mean_over_prompts, weighted_average
from hpt_ray.evaluation.results import PromptResult, read_results
from hpt_ray.tools.report.pass_at_k import chances
from hpt_ray.tools.suite.passes import PASS, Evaluation


@dataclass(frozen=True, slots=True)
class Solved:
    """One method on one model. `by_benchmark`: chances [K, Q] of its prompts, mean over seeds. `asked`: which
    prompts those are, by `reference_hash`."""

    ks: tuple[int, ...]
    by_benchmark: Mapping[str, np.ndarray]
    asked: Mapping[str, tuple[str, ...]]
    num_seeds: int

    def means(self) -> dict[int, float]:
        """pass@k for every k, each benchmark weighing the same."""
        values = np.mean([of_one.mean(axis=1) for of_one in self.by_benchmark.values()], axis=0)
        return {k: float(value) for k, value in zip(self.ks, values, strict=True)}

    def minus(self, other: Solved, k: int) -> Estimate | None:
        """The difference of pass@k with its interval over prompts; None where they were asked others."""
        if self.ks != other.ks or self.asked != other.asked:
            return None
        at = self.ks.index(k)
        deltas = [mean_over_prompts(v[at] - other.by_benchmark[n][at]) for n, v in self.by_benchmark.items()]
        return weighted_average(deltas, [1.0] * len(deltas))


Passes = Mapping[tuple[str, str], Solved]  # by (model, method)


def read_passes(evaluations: Sequence[Evaluation]) -> Passes:
    """What the finished evaluations say, a method's seeds together. UserError where not all were asked the same."""
    found: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.kind == PASS and evaluation.is_done:
            found.setdefault((evaluation.model, evaluation.method), []).append(evaluation)
    return {pair: _solved(of_pair) for pair, of_pair in found.items()}


def _solved(evaluations: Sequence[Evaluation]) -> Solved:
    seeds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    asked: dict[str, tuple[str, ...]] = {}
    for evaluation in evaluations:
        by_benchmark: dict[str, list[PromptResult]] = {}
        for row in read_results(evaluation.out):
            by_benchmark.setdefault(row.benchmark, []).append(row)
        for name, rows in by_benchmark.items():
            rows.sort(key=lambda row: row.prompt_id)
            prompts = tuple(row.reference_hash for row in rows)
            if asked.setdefault(name, prompts) != prompts:
                raise UserError(
                    f"{evaluation.out}: the prompts of {name} are not those that {evaluations[0].out} was asked. "
                    "Move the folder that is out of date away and run the suite again."
                )
            seeds.setdefault(name, []).append(chances(rows))
    ks = min((ks for of_one in seeds.values() for ks, _ in of_one), key=len)
    means = {name: np.mean([c[: len(ks)] for _, c in of_one], axis=0) for name, of_one in seeds.items()}
    return Solved(tuple(int(k) for k in ks), means, asked, len(evaluations))
