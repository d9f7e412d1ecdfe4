"""What the driver itself needs to go on exactly where it was: `state.json` of a checkpoint.

Weights, optimizer and random states are the learner's own files beside it. The learning rate and the
sampling seeds are functions of the step, so the step stands for them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hpt_ray.algorithms.gates import Attempt
from hpt_ray.checkpoint.manifest import CheckpointDamaged
from hpt_ray.checkpoint.store import STATE, load_state
from hpt_ray.config import renamed
from hpt_ray.errors import UserError

# 1: step, version, sampler, best, failures; it has no `format`. 2: history, skipped_in_a_row, wall_s.
# 3: visits. 4: owes_evaluation. 5: the names of version 0.2, as visits → attempts.
FORMAT = 5


@dataclass(slots=True)
class RunState:
    """The run after `step` steps."""

    step: int  # steps done
    version: int  # of the weights the learner holds
    sampler: dict[str, Any]  # `Sampler.state()` after the last prompt that was drawn
    best: tuple[float, int] | None = None  # score on checkpoint.best_of, and its step
    failures: dict[str, int] = field(default_factory=dict)  # named outcome → count since step 0
    history: dict[str, float] = field(default_factory=dict)  # prompt id → expected response tokens
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)  # prompt id → its attempts, oldest first
    skipped_in_a_row: int = 0  # updates skipped since the last one that was done
    owes_evaluation: bool = False  # the last step's line lacks the evaluation that a stop broke off
    wall_s: float = 0.0  # seconds of all processes of this run so far

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RunState:
        """The inverse of `to_json`, for this format and older ones; fields that they lack have defaults.

        Raises `UserError` for a newer format, `ValidationError`, `TypeError` or `AttributeError` for what is no state.
        """
        found = content.get("format", 1)
        if found > FORMAT:
            raise UserError(
                f"{STATE} has format {found}, and this version of hpt_ray reads up to {FORMAT}: continue "
                "with the version that wrote it, or a newer one."
            )
        content = renamed.fields(content)
        if isinstance(content.get("sampler"), dict):
            content["sampler"] = renamed.fields(content["sampler"])
        return TypeAdapter(cls).validate_python(content)


def read_state(checkpoint: Path) -> RunState:
    """The state of the checkpoint at `checkpoint`.

    Raises `CheckpointDamaged` where it cannot be read, `UserError` where it has a newer format.
    """
    try:
        return RunState.from_json(load_state(checkpoint))
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    except (ValidationError, TypeError, AttributeError) as error:
        raise CheckpointDamaged(f"{checkpoint}: {STATE} is no state of a run: {error!r}") from error
