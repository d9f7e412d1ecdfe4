"""What the code must know of a model because of its architecture: one record of `ARCHITECTURES` a `model_type`.

Everything else is read off the model. A model type that is not in the table takes `DEFAULT`, which looks for all
that is known of any; a user's own is added by assignment, as `ARCHITECTURES["mine"] = ArchitectureRule(…)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from hpt_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class ArchitectureRule:
    """How models of one type differ from embedding, decoder and a linear output layer. Keys are config.json's.

    `refused`: keys that ask for what cannot be trained, unless they are absent, null or 1 → why not.
    `multiplied`, `divided`: keys of numbers that the logits are multiplied with, and divided by.
    `softcap`: the key of the constant that then bounds the logits by softcap · tanh(z / softcap).
    `tied_head`: how vLLM's names of an output layer begin that has no weight of its own where it is the embedding.
    """

    refused: Mapping[str, str] = field(default_factory=dict)
    multiplied: tuple[str, ...] = ()
    divided: tuple[str, ...] = ()
    softcap: str | None = None
    tied_head: str = "lm_head"

    def check(self, config: Any) -> None:
        """Raises `UserError` where a model of this configuration cannot be trained."""
        for key, why in self.refused.items():
            if getattr(config, key, None) not in (None, 1.0):
                raise UserError(
                    f"model.path: {config.model_type} cannot be trained ({key}): {why}. Use a model of another "
                    "architecture."
                )

    def scale_of(self, config: Any) -> float:
        """What the logits are multiplied with."""
        up, down = (
            [getattr(config, key, None) or 1.0 for key in keys] for keys in (self.multiplied, self.divided)
        )
        return prod(up) / prod(down)

    def softcap_of(self, config: Any) -> float | None:
        return None if self.softcap is None else getattr(config, self.softcap, None)


# Cohere's multiplier, Granite's divisor, Gemma's cap.
DEFAULT = ArchitectureRule(
    multiplied=("logit_scale",), divided=("logits_scaling",), softcap="final_logit_softcapping"
)
WIDER_WINDOW = {"sliding_window": "vLLM gives its sliding windows one token more than transformers does"}
ARCHITECTURES: dict[str, ArchitectureRule] = {
    "cohere2": ArchitectureRule(refused=WIDER_WINDOW, multiplied=("logit_scale",)),
    "falcon_h1": ArchitectureRule(multiplied=("lm_head_multiplier",)),
    "hyperclovax": ArchitectureRule(multiplied=("logits_scaling",)),
}


def rule_of(config: Any) -> ArchitectureRule:
    """The rule for a model of this configuration (`PreTrainedConfig`)."""
    return ARCHITECTURES.get(getattr(config, "model_type", ""), DEFAULT)
