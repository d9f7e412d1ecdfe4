"""What the code must know of a model because of its architecture: one record of `ARCHITECTURES` a `model_type`.

Everything else is read off the model. A model type that is not in the table takes `DEFAULT`, which looks for all
that is known of any; a user's own is added by assignment, as `ARCHITECTURES["mine"] = ArchitectureRule(…)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpt_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class ArchitectureRule:
    """How models of one type differ from embedding, decoder and a linear output layer. Keys are config.json's.

    `refused`: keys that ask for what the learner does not do, unless they are absent, null or 1 → what that is.
    `softcap`: the key of the constant that bounds the logits by softcap · tanh(z / softcap).
    `tied_head`: how vLLM's names of an output layer begin that has no weight of its own where it is the embedding.
    """

    refused: Mapping[str, str] = field(default_factory=dict)
    softcap: str | None = None
    tied_head: str = "lm_head"

    def check(self, config: Any) -> None:
        """Raises `UserError` where a model of this configuration cannot be trained."""
        for key, what in self.refused.items():
            if getattr(config, key, None) not in (None, 1.0):
                raise UserError(
                    f"model.path: {config.model_type} {what} ({key}), which the learner does not do. Use a model "
                    "of another architecture."
                )

    def softcap_of(self, config: Any) -> float | None:
        return None if self.softcap is None else getattr(config, self.softcap, None)


MIXTURES = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), "is a mixture of experts")
MULTIPLIED = {"logit_scale": "scales its logits"}  # Cohere's way
DIVIDED = {"logits_scaling": "scales its logits"}  # Granite's
SOFTCAP = "final_logit_softcapping"  # Gemma's

DEFAULT = ArchitectureRule(refused=MIXTURES | MULTIPLIED | DIVIDED, softcap=SOFTCAP)
ARCHITECTURES: dict[str, ArchitectureRule] = {
    "cohere": ArchitectureRule(refused=MULTIPLIED),
    "cohere2": ArchitectureRule(refused=MULTIPLIED),
    "gemma2": ArchitectureRule(softcap=SOFTCAP),
    "granite": ArchitectureRule(refused=DIVIDED),
    "granitemoe": ArchitectureRule(refused=MIXTURES | DIVIDED),
}


def rule_of(config: Any) -> ArchitectureRule:
    """The rule for a model of this configuration (`PreTrainedConfig`)."""
    return ARCHITECTURES.get(getattr(config, "model_type", ""), DEFAULT)
