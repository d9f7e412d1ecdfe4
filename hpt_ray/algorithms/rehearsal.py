"""Rehearsal: demonstrations of past data that train in every step, beside whatever the algorithm does.

Let the demonstrations be responses y of the base to prompts of the past. Then their likelihood is, up to a constant,
the forward KL to the base, and its gradient is the unified one with m = 1, π_ref = π_θ and Â = 1, as that of SFT:

    KL(π_base ‖ π_θ) = E_{y ~ π_base} [log π_base(y) − log π_θ(y)],   −∇KL = E_{y ~ π_base} ∇log π_θ(y)

(here each response's part is divided by its length). With demonstrations of another origin it is the rehearsal of
continual learning, and InstructGPT's "ptx" loss (arXiv 2203.02155, Eq 2). No gate decides on these rows, no reward
function sees them, and no Z but their own counts them.
"""

from __future__ import annotations

from dataclasses import replace

from hpt_ray.algorithms.base import Term
from hpt_ray.algorithms.gates import demo_sample
from hpt_ray.types import Prompt, Sample

# Z = N·L with the N prompts of an update, as that of `sft`: M rows pull with M/N of the strength of SFT on all prompts.
REHEARSAL = Term("rehearsal", "one", "current", loss_aggregation="seq-mean-token-mean")


def rehearsal_of(prompts: list[Prompt]) -> list[Sample]:
    """The samples of rows that are rehearsed; each has a demonstration. They are weighed apart from all others."""
    return [replace(demo_sample(prompt), is_rehearsal=True) for prompt in prompts]
