"""The critic's model: the policy's architecture with one scalar per position.

It starts from the policy's weights and a head of zeros, so that every value is 0 before the first update.
V of a response token is read at the position before it, where the token is not yet known. To transformers
it is a token classifier with one label, and an export loads as that.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

from hpt_ray.config.schema import ModelConfig
from hpt_ray.errors import UserError
from hpt_ray.learner.attention import NAME as SEGMENTS
from hpt_ray.learner.model import load_policy
from hpt_ray.learner.scorer import ScorerInput


def load_critic(config: ModelConfig, path: str, *, seed: int) -> PreTrainedModel:
    """The model at `path` with a value head of zeros in the place of the output layer.

    Raises `UserError` where transformers has no such model of this architecture.
    """
    policy = load_policy(config, path, seed=seed)
    shape = copy.deepcopy(policy.config)
    shape.num_labels = 1
    shape.classifier_dropout = 0.0
    try:
        with torch.device("meta"):  # its own weights are never used
            model = AutoModelForTokenClassification.from_config(shape, attn_implementation=config.attention)
    except ValueError as error:
        raise UserError(
            f"model.path={path}: transformers has no value model (token classification) for "
            f"{shape.model_type}; use an algorithm without a critic, such as rloo or grpo."
        ) from error
    setattr(model, model.base_model_prefix, policy.base_model)
    weight = policy.get_input_embeddings().weight
    model.score = torch.nn.Linear(model.score.in_features, 1, dtype=weight.dtype)
    torch.nn.init.zeros_(model.score.weight)
    torch.nn.init.zeros_(model.score.bias)
    return model


class ValueScorer(torch.nn.Module):
    """A value model seen as: packed samples → V of their response tokens."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model: Any = model

    def forward(self, samples: ScorerInput) -> torch.Tensor:
        """V [R] float32 of the prefix that each response token continues."""
        packed = {"segments": samples.segments} if self.model.config._attn_implementation == SEGMENTS else {}
        hidden = self.model.base_model(
            input_ids=samples.token_ids, position_ids=samples.position_ids, use_cache=False, **packed
        ).last_hidden_state[0]
        return self.model.score(hidden.index_select(0, samples.before)).squeeze(-1).float()
