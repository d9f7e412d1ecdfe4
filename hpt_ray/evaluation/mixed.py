"""One mixed model for every score, difference and claim of a suite: bases, seeds and prompts are random.

    y[b, s, q] = μ + base_b + seed_s(b) + prompt_q + (base × prompt)_bq + rest

Seeds are nested in bases; prompts are crossed with both, since all runs answer the same ones. Two methods are compared
by the same model on their differences, paired by base, seed and prompt, in which everything they share has cancelled.

The balanced design has closed forms (analysis of variance: Cornfield and Tukey 1956; for evaluations: Miller 2024,
arXiv 2411.00640). With seeds averaged within each of U bases, and MS the mean squares of bases, prompts and their
interaction in the table U × Q that is left,

    Var(mean) = (MS_bases + MS_prompts − MS_interaction) / (U·Q)

with Satterthwaite's (1946) degrees of freedom, from which interval and p follow by Student's t. With one base the U
units are its seeds, and nothing is said of other bases. Sets are fixed and count alike; each has its own prompts.
The sum is never below MS_bases / (U·Q): prompts cannot make a mean more certain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from hpt_ray.evaluation.statistics import Difference, sign_flip_p

Unit = tuple[str, int]  # base, seed
PerPrompt = Sequence[np.ndarray]  # a value a prompt, set by set


def estimate(runs: Mapping[Unit, PerPrompt]) -> Difference:
    """The mean over sets, prompts, seeds and bases. All runs have the same sets and prompts, and there is a run.

    A set with one value is a score without its prompts: then the interval is over the runs alone, and `over` says so.
    The sign flips are of whole bases, or of seeds where there is one base: a check of p that assumes less, on these
    prompts. No interval for one unit.
    """
    by_base: dict[str, list[PerPrompt]] = defaultdict(list)
    for (base, _), values in sorted(runs.items(), key=lambda run: run[0]):
        by_base[base].append(values)
    nested = len(by_base) > 1
    units = list(by_base.values()) if nested else [[values] for values in by_base[next(iter(by_base))]]
    num_sets = len(units[0][0])
    tables = [
        np.array([np.mean([run[k] for run in unit], axis=0) for unit in units]) for k in range(num_sets)
    ]
    means = np.mean([table.mean(axis=1) for table in tables], axis=0)
    over = ("bases and seeds" if nested else "seeds") + " and prompts" * (tables[0].shape[1] > 1)
    mean, u = float(means.mean()), len(means)
    if u < 2:
        return Difference(len(runs), mean, None, None, over=over)
    parts = [(float(means.var(ddof=1)) / u, u - 1)]
    for table in tables:
        if (q := table.shape[1]) > 1:
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            # Each MS / (U·Q), and a set's share in the mean is 1 / number of sets.
            parts.append((float(table.mean(axis=0).var(ddof=1)) / q / num_sets**2, q - 1))
            df = (u - 1) * (q - 1)
            parts.append((-float((rest**2).sum()) / df / u / q / num_sets**2, df))
    variance = sum(part for part, _ in parts)
    if variance > parts[0][0]:
        df = max(variance**2 / sum(part**2 / df for part, df in parts), u - 1)
    else:
        variance, df = parts[0]
    width = float(stats.t.ppf(0.975, df)) * variance**0.5
    # Where nothing scatters, t is infinite or 0/0 and says nothing.
    p = float(2 * stats.t.sf(abs(mean) / variance**0.5, df)) if variance > 1e-24 else None
    return Difference(len(runs), mean, width, p, sign_flip_p(means), over)


def paired(a: Mapping[Unit, PerPrompt], b: Mapping[Unit, PerPrompt]) -> Difference | None:
    """A − B over the bases and seeds that both have; None where there are none."""
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    shapes = {tuple(map(len, side[unit])) for side in (a, b) for unit in common}
    if len(shapes) > 1:  # other prompts: by the means alone
        a, b = ({unit: [np.array([np.mean([v.mean() for v in x[unit]])])] for unit in common} for x in (a, b))
    return estimate({unit: [x - y for x, y in zip(a[unit], b[unit], strict=True)] for unit in common})
