"""Keys of low-rank adapters, a section of `learner`."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_ray.config.fields import key


@dataclass
class LoRAConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685), which train in the place of the weights.

    See docs/placement.md.
    """

    rank: int = key(0, "r of the adapters; 0: there are none, and all weights train.")
    alpha: float = key(32.0, "α: an adapter adds α/r · B·A to its weight.")
    target_modules: list[str] = key(
        ["all-linear"],
        "Linear layers that get one, by the end of their names, as in `[q_proj, v_proj]`; `all-linear`: all but the "
        "output layer.",
    )
