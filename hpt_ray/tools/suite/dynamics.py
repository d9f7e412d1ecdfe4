"""What the paper reports about the course of training, asked of our runs: each claim, and whether it holds.

A `Finding` is made from numbers by a fixed rule and says the numbers. "holds": for every seed, or with an
interval without 0; where methods are compared, with a corrected p below 0.05. "does not hold": the reverse.
"open": the runs do not decide it. Nothing here is tuned to come out one way; a claim of
which the runs are missing is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from hpt_ray.evaluation.statistics import percent
from hpt_ray.tools.report import RunData, Series
from hpt_ray.tools.suite.collect import ALL, Results
from hpt_ray.tools.suite.passes import BASE, Passes
from hpt_ray.tools.suite.tables import contrasts, p_text, signed

ENTROPY = "policy/entropy"
WINDOW = 5  # steps that stand for the start and for the end
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


def findings(results: Results, passes: Passes) -> list[Finding]:
    """All claims that the suite's runs can be asked about, model by model."""
    return [
        Finding(model, *said)
        for model in results.suite.models
        for claim in CLAIMS
        for said in claim(results, passes, model)
    ]


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


Said = Iterator[tuple[str, str, str, str]]  # the fields of a finding after its model


def offline_ratio_falls(results: Results, passes: Passes, model: str) -> Said:
    ends = [ends for run in results.runs(model, "hpt") if (ends := _ends(offline_ratio(run).values))]
    if not ends:
        return
    starts, lasts = zip(*ends, strict=True)
    falls, stays = [last < start for start, last in ends], [last > 0 for last in lasts]
    means = (
        f"{fmean(starts):.1%} of samples in the first {WINDOW} steps, {fmean(lasts):.1%} in the last {WINDOW}"
    )
    each = f"In the last {WINDOW} steps: {', '.join(f'{last:.1%}' for last in lasts)}"
    yield "HPT's share of demonstrations falls", "Figure 6", *_by_seeds(means, falls)
    yield "It stays above zero to the end", "Figure 6", *_by_seeds(each, stays)


def gate_at_zero_is_best(results: Results, passes: Passes, model: str) -> Said:
    against = {c.method: c for c in contrasts(results, model) if c.measure == ALL}
    for method, gamma in GATES.items():
        if c := against.get(method):
            diff, is_small = c.difference, c.p_holm is not None and c.p_holm < 0.05
            p = f"{diff.n} seeds, p = {p_text(c.p_holm)} corrected for the methods compared"
            inherited = "; with the values tuned for γ = 0" * (
                results.suite.methods[method].tuned_as == "hpt"
            )
            numbers = f"{signed(diff.mean, diff.ci95)} points over all sets; {p}{inherited}."
            yield f"γ = 0 is better than γ = {gamma}", "Table 6", _verdict(diff.mean, is_small), numbers
    for method, gamma in GATES.items():
        series = [[offline_ratio(run).values for run in results.runs(model, m)] for m in ("hpt", method)]
        means = [[values.mean() for values in of_method if len(values)] for of_method in series]
        if all(means):
            ours, theirs = (float(np.mean(of_method)) for of_method in means)
            numbers = f"{theirs:.1%} of samples over the run, against {ours:.1%} at γ = 0."
            verdict = _verdict(theirs - ours, True)
            yield f"γ = {gamma} asks for more demonstrations", "Figure 8", verdict, numbers


def entropy_is_above_grpo(results: Results, passes: Passes, model: str) -> Said:
    ours, theirs = ({run.seed: run for run in results.runs(model, name)} for name in ("hpt", "grpo"))
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    above = [share for pair in pairs if (share := _share_above(*pair, ENTROPY)) is not None]
    if above:
        verdict = "holds" if min(above) > 0.95 else "does not hold" if max(above) < 0.5 else "open"
        by_seed = ", ".join(f"{share:.0%}" for share in above)
        numbers = f"Above at {fmean(above):.0%} of the steps ({by_seed} by seed)."
        yield "HPT's entropy is above GRPO's at all times", "Figure 7", verdict, numbers


def passes_at_large_k(results: Results, passes: Passes, model: str) -> Said:
    for a, b, claim in AT_LARGE_K:
        if (model, a) not in passes or (model, b) not in passes:
            continue
        ours, theirs = passes[model, a], passes[model, b]
        k = max(ours.ks)
        diff = ours.minus(theirs, k)
        verdict, numbers = "open", "The two were not asked the same prompts, or not as often."
        if diff is not None:
            width = diff.half_width or 0.0
            one_run = 1 in [s.num_seeds for s, name in ((ours, a), (theirs, b)) if name != BASE]
            verdict = _verdict(diff.value, abs(diff.value) > width and not one_run)
            seeds = "one seed, which says nothing of others" if one_run else f"{ours.num_seeds} seeds"
            points = percent(diff.value, width, sign="+")
            both = f"{ours.means()[k]:.1%} against {theirs.means()[k]:.1%}"
            numbers = f"{both}: {points} points, over prompts{'' if one_run else ' and seeds'}; {seeds}."
        yield claim.format(k=k), "Figure 2", verdict, numbers


CLAIMS = (offline_ratio_falls, gate_at_zero_is_best, entropy_is_above_grpo, passes_at_large_k)


def _ends(values: np.ndarray) -> tuple[float, float] | None:
    """Mean at the start and at the end; those of a short run do not overlap."""
    window = min(WINDOW, len(values) // 2)
    return (float(values[:window].mean()), float(values[-window:].mean())) if window else None


def _share_above(a: RunData, b: RunData, metric: str) -> float | None:
    """Share of the steps that both have at which `a` is above `b`."""
    of_a, of_b = a.series(metric), b.series(metric)
    steps = np.intersect1d(of_a.steps, of_b.steps)
    return float(np.mean(of_a.at(steps) > of_b.at(steps))) if len(steps) else None


def _by_seeds(numbers: str, each: Sequence[bool]) -> tuple[str, str]:
    """Verdict and numbers of what was asked of every seed."""
    verdict = "holds" if all(each) else "open" if any(each) else "does not hold"
    return verdict, f"{numbers} ({sum(each)} of {len(each)} seeds)."


def _verdict(difference: float, differs: bool) -> str:
    """`differs`: 0 is outside of the interval."""
    return "open" if not differs else "holds" if difference > 0 else "does not hold"
