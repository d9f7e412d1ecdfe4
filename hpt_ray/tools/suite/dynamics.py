"""What the paper reports about the course of training, asked of our runs: each claim, and whether it holds.

A `Finding` is made from numbers by a fixed rule and says the numbers. "holds": for every seed, or with an
interval without 0. "does not hold": the reverse. "open": the runs do not decide it. Nothing here is tuned to
come out one way; a claim of which the runs are missing is left out, and `findings` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from hpt_ray.evaluation.tests_of_difference import difference
from hpt_ray.tools.report.load import RunData
from hpt_ray.tools.suite.collect import ALL, Results
from hpt_ray.tools.suite.solved import Passes
from hpt_ray.tools.suite.tables import signed

OFFLINE = "selection/demo_prompt_ratio"
ENTROPY = "policy/entropy"
WINDOW = 5  # steps that stand for the start and for the end


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
        finding
        for model in results.suite.models
        for claim in CLAIMS
        for finding in claim(results, passes, model)
    ]


def offline_ratio_falls(results: Results, passes: Passes, model: str) -> Iterator[Finding]:
    runs = [score.run for score in results.of(model, "hpt")]
    ends = [
        (a, b)
        for run in runs
        if (a := _start(run, OFFLINE)) is not None and (b := _end(run, OFFLINE)) is not None
    ]
    if not ends:
        return
    starts, lasts = zip(*ends, strict=True)
    numbers = (
        f"{fmean(starts):.1%} of prompts in the first {WINDOW} steps, {fmean(lasts):.1%} in the last {WINDOW}"
    )
    falls = [b < a for a, b in ends]
    yield Finding(
        model,
        "HPT's share of demonstrations falls",
        "Figure 6",
        _verdict(falls),
        f"{numbers} ({_count(falls)}).",
    )
    stays = [b > 0 for b in lasts]
    yield Finding(
        model,
        "It stays above zero to the end",
        "Figure 6",
        _verdict(stays),
        f"In the last {WINDOW} steps: {', '.join(f'{b:.1%}' for b in lasts)} ({_count(stays)}).",
    )


def gate_at_zero_is_best(results: Results, passes: Passes, model: str) -> Iterator[Finding]:
    for method, name in (("hpt_gamma_1", "1/8"), ("hpt_gamma_2", "2/8")):
        diff = difference(results.by_seed(model, "hpt", ALL), results.by_seed(model, method, ALL))
        if diff is not None:
            verdict = _verdict_on(diff.mean, diff.differs)
            numbers = f"{signed(diff)} points over all sets, {diff.n} seeds."
            yield Finding(model, f"γ = 0 is better than γ = {name}", "Table 6", verdict, numbers)
    for method, name in (("hpt_gamma_1", "1/8"), ("hpt_gamma_2", "2/8")):
        ours, theirs = (_mean_over(results, model, m, OFFLINE) for m in ("hpt", method))
        if ours is not None and theirs is not None:
            numbers = f"{theirs:.1%} of prompts over the run, against {ours:.1%} at γ = 0."
            verdict = "holds" if theirs > ours else "does not hold"
            yield Finding(model, f"γ = {name} asks for more demonstrations", "Figure 8", verdict, numbers)


def entropy_is_above_grpo(results: Results, passes: Passes, model: str) -> Iterator[Finding]:
    pairs = _by_seed(results, model, "hpt", "grpo")
    above = [share for a, b in pairs if (share := _share_above(a, b, ENTROPY)) is not None]
    if not above:
        return
    verdict = "holds" if min(above) > 0.95 else "does not hold" if max(above) < 0.5 else "open"
    numbers = (
        f"Above at {fmean(above):.0%} of the steps ({', '.join(f'{share:.0%}' for share in above)} by seed)."
    )
    yield Finding(model, "HPT's entropy is above GRPO's at all times", "Figure 7", verdict, numbers)


def passes_at_large_k(results: Results, passes: Passes, model: str) -> Iterator[Finding]:
    of_model = {method: solved for (m, method), solved in passes.items() if m == model}
    for a, b, claim in (
        ("hpt", "grpo", "HPT's pass@{k} is above GRPO's"),
        ("sft", "grpo", "SFT's pass@{k} is above GRPO's"),
        ("sft_then_grpo", "grpo", "SFT→GRPO's pass@{k} is above GRPO's"),
        ("hpt", "base", "HPT's pass@{k} is above that of the model before training"),
    ):
        if a not in of_model or b not in of_model:
            continue
        ours, theirs = of_model[a], of_model[b]
        k = max(ours.ks)
        diff = ours.minus(theirs, k)
        if diff is None:
            numbers = "The two were not asked the same prompts, or not as often."
            yield Finding(model, claim.format(k=k), "Figure 2", "open", numbers)
            continue
        width = diff.half_width or 0.0
        verdict = _verdict_on(diff.value, abs(diff.value) > width)
        numbers = (
            f"{ours.means()[k]:.1%} against {theirs.means()[k]:.1%}: {100 * diff.value:+.1f} ± {100 * width:.1f} "
            f"points, over prompts; {ours.num_seeds} seed{'' if ours.num_seeds == 1 else 's'}."
        )
        yield Finding(model, claim.format(k=k), "Figure 2", verdict, numbers)


CLAIMS: tuple[Callable[[Results, Passes, str], Iterator[Finding]], ...] = (
    offline_ratio_falls,
    gate_at_zero_is_best,
    entropy_is_above_grpo,
    passes_at_large_k,
)


def _start(run: RunData, metric: str) -> float | None:
    values = run.series(metric).values
    return float(values[: _window(values)].mean()) if len(values) > 1 else None


def _end(run: RunData, metric: str) -> float | None:
    values = run.series(metric).values
    return float(values[-_window(values) :].mean()) if len(values) > 1 else None


def _window(values: np.ndarray) -> int:
    """Start and end of a short run do not overlap."""
    return min(WINDOW, len(values) // 2)


def _mean_over(results: Results, model: str, method: str, metric: str) -> float | None:
    means = [v.mean() for s in results.of(model, method) if len(v := s.run.series(metric).values)]
    return float(np.mean(means)) if means else None


def _by_seed(results: Results, model: str, a: str, b: str) -> list[tuple[RunData, RunData]]:
    of_b = {score.spec.seed: score.run for score in results.of(model, b)}
    return [(s.run, of_b[s.spec.seed]) for s in results.of(model, a) if s.spec.seed in of_b]


def _share_above(a: RunData, b: RunData, metric: str) -> float | None:
    """Share of the steps that both have at which `a` is above `b`."""
    of_a, of_b = a.series(metric), b.series(metric)
    _, i, j = np.intersect1d(of_a.steps, of_b.steps, return_indices=True)
    return float(np.mean(of_a.values[i] > of_b.values[j])) if len(i) else None


def _verdict(each: list[bool]) -> str:
    return "holds" if all(each) else "open" if any(each) else "does not hold"


def _verdict_on(difference: float, differs: bool) -> str:
    """`differs`: 0 is outside of the interval."""
    return "open" if not differs else "holds" if difference > 0 else "does not hold"


def _count(each: list[bool]) -> str:
    return f"{sum(each)} of {len(each)} seeds"
