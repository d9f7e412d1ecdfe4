"""An estimator in words: the four parts of every term, the normalizers, and which samples get what."""

from __future__ import annotations

from hpt_ray.algorithms.corrections import CORRECTIONS
from hpt_ray.algorithms.estimator import Estimator, parts_of
from hpt_ray.algorithms.loss_aggregation import LOSS_AGGREGATIONS
from hpt_ray.algorithms.table import ALGORITHMS

DATA = {
    "switch": "per prompt, its rollouts (weight α) or its demonstration (weight β), as the gate decides",
    "rollouts": "the rollouts of every prompt",
    "demonstrations": "the demonstration of every prompt",
    "both": "the rollouts and the demonstration of every prompt",
}


def describe(estimator: Estimator) -> str:
    """Readable text of several lines; formulas as in the tables, numbers as they are set."""
    algorithm = ALGORITHMS[estimator.name]
    lines = [
        f"{algorithm.name}: {algorithm.title}  (mode: {estimator.mode}"
        + (f", offline branch: {estimator.offline_branch})" if algorithm.default.offline else ")"),
        f"  source       {algorithm.source}",
        f"  data         {DATA[estimator.gate]}",
        "  loss         Σ over terms of −Σ sg(c)·log π_θ / Z,  c = m · Â · s · π_θ/π_ref",
    ]
    for k, term in enumerate(estimator.terms, start=1):
        lines.append(f"  term {k} on {term.stream}, times {term.coef:g}")
        for family, part in parts_of(term).items():
            label = f"{family} {getattr(term, family)}"
            lines.append(f"    {label:<32} {part.formula}{_numbers(estimator, part.needs)}")
    lines += _additive_terms(estimator)
    if estimator.needs_all_samples:
        lines.append("  The backward pass waits for the last group: a Z or an advantage needs all samples.")
    return "\n".join(lines)


def _numbers(estimator: Estimator, needs: frozenset[str]) -> str:
    s = estimator.settings
    constant = "max_response_tokens" if s.length_constant is None else f"{s.length_constant:g}"
    texts = {
        "clip": f"ε_low = {s.clip_low:g}, ε_high = {s.clip_high:g}",
        "length_constant": f"C = {constant}",
        "shaping_gamma": f"γ = {s.shaping_gamma:g}",
        "values": f"γ = {s.discount:g}, λ = {s.gae_lambda:g}",
    }
    used = [text for need, text in texts.items() if need in needs]
    return f"   [{', '.join(used)}]" if used else ""


def _additive_terms(estimator: Estimator) -> list[str]:
    lines = []
    if estimator.entropy_coef:
        z = estimator.entropy_aggregation
        rule = LOSS_AGGREGATIONS[z].formula if z else "Z of each stream's first term"
        lines.append(f"  entropy      −{estimator.entropy_coef:g} · Σ H_t / Z,  {rule}")
    if estimator.kl_coef:
        where = "Σ KL_t / Z of the first term on rollouts" if estimator.kl_in == "loss" else "from the reward"
        lines.append(f"  KL           {estimator.kl_coef:g} · {estimator.kl_estimator}, {where}")
    if estimator.correction != "none":
        s = estimator.settings
        lines.append(
            f"  correction   {CORRECTIONS[estimator.correction].formula}   "
            f"[low = {s.correction_low:g}, high = {s.correction_high:g}]"
        )
    return lines
