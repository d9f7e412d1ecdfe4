"""What the paper reports about the course of training, asked of our runs: each claim, and whether it holds.

Each claim is a mean that is above zero: a difference of two methods, or of two times of a run. "holds": above zero with
a corrected p below 0.05; "does not hold": below zero with such a p; "open": the runs do not decide it. The p are
those of `evaluation.mixed`, corrected by Holm over the claims of the page; where the comparison stands in the table of
differences too, its p there. Nothing else decides. A claim of which the runs are missing is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from hpt_ray.evaluation.mixed import Unit, estimate, paired
from hpt_ray.evaluation.statistics import Difference, holm
from hpt_ray.tools.report import RunData, Series
from hpt_ray.tools.suite.collect import ALL, Results
from hpt_ray.tools.suite.passes import Passes
from hpt_ray.tools.suite.tables import contrasts, p_text, signed

ENTROPY = "policy/entropy"
WINDOW = 5  # steps that stand for the start and for the end
TABLE6 = "Table 6"
GATES = {"hpt_gamma_1": "1/8", "hpt_gamma_2": "2/8"}
AT_LARGE_K = (
    ("hpt", "grpo", "HPT's pass@{k} is above GRPO's"),
    ("sft", "grpo", "SFT's pass@{k} is above GRPO's"),
    ("sft_then_grpo", "grpo", "SFT→GRPO's pass@{k} is above GRPO's"),
    ("hpt", "base", "HPT's pass@{k} is above that of the model before training"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim on one model."""

    model: str
    claim: str
    source: str
    verdict: str  # holds, does not hold, open
    numbers: str
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class Said:
    """A claim before its p is corrected. `p_holm`: where the table of differences has corrected it."""

    claim: str
    source: str
    test: Difference | None
    numbers: str
    p_holm: float | None = None


def findings(results: Results, passes: Passes) -> list[Finding]:
    """All claims that the suite's runs can be asked about, model by model."""
    asked = [
        (model, said)
        for model in results.suite.models
        for claim in CLAIMS
        for said in claim(results, passes, model)
    ]
    own = [said.test.p_t if said.test and said.source != TABLE6 else None for _, said in asked]
    found = []
    for (model, said), p in zip(asked, holm(own), strict=True):
        p = said.p_holm if said.source == TABLE6 else p
        mean = said.test.mean if said.test else 0.0
        verdict = "open" if p is None or p >= 0.05 else "holds" if mean > 0 else "does not hold"
        over = f" over {said.test.over}, {said.test.n} runs" if said.test else ""
        numbers = f"{said.numbers} p = {p_text(p)} corrected{over}."
        found.append(Finding(model, said.claim, said.source, verdict, numbers, p))
    return found


def offline_ratio(run: RunData) -> Series:
    """Demonstrations as a share of the rows that a step trains on, as the paper's Figures 6 and 8 have it: with
    `a` of 128 prompts gated and 8 rollouts each, a / (8 · (128 − a) + a)."""
    rows: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    for attempt in run.attempts:
        rows[attempt.step][0] += attempt.demo_weight > 0
        rows[attempt.step][1] += (attempt.rollouts - attempt.aborted) * (attempt.rollout_weight > 0)
    shares = {
        step: demos / (demos + rollouts) for step, (demos, rollouts) in rows.items() if demos + rollouts
    }
    steps = sorted(shares)
    return Series(np.array(steps, int), np.array([shares[step] for step in steps]))


def offline_ratio_falls(results: Results, passes: Passes, model: str) -> Iterator[Said]:
    ends = {
        u: ends
        for u, run in _runs(results, model, "hpt").items()
        if (ends := _ends(offline_ratio(run).values))
    }
    if not ends:
        return
    starts, lasts = zip(*ends.values(), strict=True)
    means = f"{fmean(starts):.1%} of samples in the first {WINDOW} steps, {fmean(lasts):.1%} in the last {WINDOW};"
    each = f"In the last {WINDOW} steps {fmean(lasts):.1%} ({min(lasts):.1%} to {max(lasts):.1%});"
    falls = _over({unit: start - last for unit, (start, last) in ends.items()})
    yield Said("HPT's share of demonstrations falls", "Figure 6", falls, means)
    yield Said(
        "It stays above zero to the end", "Figure 6", _over({u: last for u, (_, last) in ends.items()}), each
    )


def gate_at_zero_is_best(results: Results, passes: Passes, model: str) -> Iterator[Said]:
    against = {c.method: c for c in contrasts(results, model) if c.measure == ALL}
    for method, gamma in GATES.items():
        if c := against.get(method):
            inherited = ", with the values tuned for γ = 0" * (
                results.suite.methods[method].tuned_as == "hpt"
            )
            numbers = f"{signed(c.difference.mean, c.difference.ci95)} points over all sets{inherited};"
            yield Said(f"γ = 0 is better than γ = {gamma}", TABLE6, c.difference, numbers, c.p_holm)
    for method, gamma in GATES.items():
        ours, theirs = (
            {
                u: float(values.mean())
                for u, run in _runs(results, model, m).items()
                if len(values := offline_ratio(run).values)
            }
            for m in ("hpt", method)
        )
        if ours and theirs:
            high, low = fmean(theirs.values()), fmean(ours.values())
            numbers = f"{high:.1%} of samples over the run, against {low:.1%} at γ = 0;"
            yield Said(f"γ = {gamma} asks for more demonstrations", "Figure 8", _over(theirs, ours), numbers)


def entropy_is_above_grpo(results: Results, passes: Passes, model: str) -> Iterator[Said]:
    ours, theirs = (_runs(results, model, name) for name in ("hpt", "grpo"))
    pairs = {u: gap for u in ours.keys() & theirs.keys() if len(gap := _gap(ours[u], theirs[u], ENTROPY))}
    if pairs:
        above = [float((gap > 0).mean()) for gap in pairs.values()]
        numbers = f"Above at {fmean(above):.0%} of the steps ({min(above):.0%} to {max(above):.0%});"
        test = _over({unit: float(gap.mean()) for unit, gap in pairs.items()})
        yield Said("HPT's entropy is above GRPO's, mean over the run", "Figure 7", test, numbers)


def passes_at_large_k(results: Results, passes: Passes, model: str) -> Iterator[Said]:
    for a, b, claim in AT_LARGE_K:
        if (model, a) not in passes or (model, b) not in passes:
            continue
        ours, theirs = passes[model, a], passes[model, b]
        k = max(ours.ks)
        diff = ours.minus(theirs, k)
        numbers = "The two were not asked the same prompts, or not as often;"
        if diff is not None:
            both = f"{ours.means()[k]:.1%} against {theirs.means()[k]:.1%}"
            numbers = f"{both}: {signed(diff.mean, diff.ci95)} points;"
        yield Said(claim.format(k=k), "Figure 2", diff, numbers)


CLAIMS = (offline_ratio_falls, gate_at_zero_is_best, entropy_is_above_grpo, passes_at_large_k)


def _ends(values: np.ndarray) -> tuple[float, float] | None:
    """Mean at the start and at the end; those of a short run do not overlap."""
    window = min(WINDOW, len(values) // 2)
    return (float(values[:window].mean()), float(values[-window:].mean())) if window else None


def _gap(a: RunData, b: RunData, metric: str) -> np.ndarray:
    """a − b at the steps that both have."""
    of_a, of_b = a.series(metric), b.series(metric)
    steps = np.intersect1d(of_a.steps, of_b.steps)
    return of_a.at(steps) - of_b.at(steps)


def _runs(results: Results, model: str, method: str) -> dict[Unit, RunData]:
    return {r.unit: r.run for r in results.of(model, method) if r.run is not None}


def _over(values: Mapping[Unit, float], minus: Mapping[Unit, float] | None = None) -> Difference | None:
    """A number a run, or the difference to another's, over the runs."""
    a, b = ({unit: [np.array([value])] for unit, value in (side or {}).items()} for side in (values, minus))
    return estimate(a) if minus is None else paired(a, b)
