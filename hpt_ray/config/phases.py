"""The phases of a run: stretches of its steps with other settings, such as SFT and then GRPO.

In: a `Config` whose `phases` are mappings of `steps` and keys to replace. Out: one `Phase` for each, with the
configuration of a run that would have its steps alone. A run without `phases` is one phase.

A phase begins as a run would that is given the weights of the phase before: learning rate from its warm-up,
empty optimizer state, the first epoch of its data, no history of prompts. What may differ between phases is
`PER_PHASE`: all else decides which actors there are, and they stay up over the whole run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpt_ray.config.load import known_keys, load_as, steps_of_phases
from hpt_ray.config.references import written
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError

PER_PHASE = (
    "prompts_per_step",
    "group_size",
    "max_tokens_per_micro_batch",
    "updates_per_step",
    "data.train",
    "data.rehearsal",
    "data.rehearsal_per_step",
    "selection",
    "algorithm",
    "learner.learning_rate",
    "learner.schedule",
    "learner.warmup_steps",
    "learner.min_lr_ratio",
)


@dataclass(frozen=True)
class Phase:
    """Steps `before` + 1 to `last` of a run. Example: `Phase(2, 150, config with run.steps=100)`."""

    number: int  # from 1
    before: int  # steps of the phases before it
    config: Config  # of a run of its steps alone

    @property
    def last(self) -> int:
        return self.before + self.config.run.steps


def phases_of(config: Config) -> list[Phase]:
    """The phases in order. Raises `UserError` for a key that is unknown or may not differ between phases."""
    if not config.phases:
        return [Phase(1, 0, config)]
    phases: list[Phase] = []
    base = written(config)
    for number, (content, steps) in enumerate(zip(base["phases"], steps_of_phases(config), strict=True), 1):
        changes = {key: value for key, value in content.items() if key != "steps"}
        if fixed := [f"`{key}`" for key in _fixed(changes)]:
            raise UserError(
                f"phase {number}: {', '.join(fixed)} cannot differ between phases; what can: "
                f"{', '.join(PER_PHASE)}."
            )
        whole = base | {"phases": [], "run": base["run"] | {"steps": steps}}
        own = load_as(Config, None, [], base={"the run": whole, f"phase {number}": changes})
        phases.append(Phase(number, phases[-1].last if phases else 0, own))
    return phases


def _fixed(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The known keys in `content` that are not in `PER_PHASE`."""
    for part, value in content.items():
        name = f"{prefix}{part}"
        if name in PER_PHASE:
            continue
        if name in known_keys():
            yield name
        elif isinstance(value, Mapping):
            yield from _fixed(value, f"{name}.")
